"""SAEs: the table of architectures, and how each is trained, made or read."""
