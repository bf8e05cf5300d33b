"""What both halves share: statistics, text, files, errors, and the schema of a study file. Imports neither half."""
