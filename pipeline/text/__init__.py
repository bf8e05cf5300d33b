"""The text under study: where documents come from, how they become token sequences."""
