"""Reading study files."""
