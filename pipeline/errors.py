"""Errors that are sentences: the user's to mend, with which the command line exits with 2, and the program's own."""


class LineupError(Exception):
    """What is wrong, the value found, what is allowed and what to do, in one sentence."""


class BrokenError(Exception):
    """An error that is not the user's has ended the run: which, and where its traceback is; exit status 1."""
