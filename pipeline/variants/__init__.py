"""The models that are compared: the table of variants, and what each does to a model."""
