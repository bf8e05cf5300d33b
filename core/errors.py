"""Errors that are sentences: the user's to mend, with which the command line exits with 2, and the program's own."""

import re


class UserError(Exception):
    """What is wrong, the value found, what is allowed and what to do, in one sentence."""


MOST_SHOWN = 200
"""Characters of a wrong value that an error repeats."""


def shown(value: object) -> str:
    """A value as it was written, if it is not too long to read."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "a number of very many digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


class BrokenError(Exception):
    """An error that is not the user's has ended the run: which, and where its traceback is; exit status 1."""


_QUOTED_FOLDERS = re.compile(r"""(['"“]\w*:?)/[^'"”\n]*/(?=[^'"”/])""")
_FOLDERS = re.compile(r"""(?<![\w./~<-])/(?!/)(?:[^\s/'"“”,;]+/)*(?=[\w.])""")


def without_folders(message: str) -> str:
    """A message for whoever looks at a page, who need not know how this machine's folders are called."""
    return _FOLDERS.sub("", _QUOTED_FOLDERS.sub(r"\1", message))
