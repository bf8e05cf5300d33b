"""The one kind of error that is the user's to mend: the command line prints it as one sentence and exits with 2."""


class LineupError(Exception):
    """What is wrong, the value found, what is allowed and what to do, in one sentence."""
