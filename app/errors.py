"""Everything that can go wrong on a page, as one shape: a status, a headline, a sentence, and what there is instead."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Way:
    """A link off an error page."""

    label: str
    path: str


@dataclass
class PageError(Exception):
    """A page that cannot be shown; `advice` says what to do, `ways` are links to what there is."""

    status: int
    title: str
    message: str
    advice: str = ""
    ways: Sequence[Way] = field(default_factory=tuple)

    def __str__(self) -> str:
        return self.message


def not_found(what: str, asked: object, known: Iterable[object], ways: Sequence[Way] = ()) -> PageError:
    """404: `what` (such as 'variant'), the value asked for, and the values there are."""
    return PageError(
        404, f"No such {what}", f"There is no {what} “{_short(asked)}”.", f"There is: {_listed(known)}.", ways
    )


def bad_request(name: str, value: object, allowed: Iterable[object] | str) -> PageError:
    """400: the query parameter, the value found, and what it may be."""
    listed = allowed if isinstance(allowed, str) else f"one of: {_listed(allowed)}"
    return PageError(400, "That address does not work", f"{name} is “{_short(value)}”.", f"It may be {listed}.")


def damaged(file: str, reason: str) -> PageError:
    """503: a study file that is no study, or not any more."""
    return PageError(
        503,
        "This study cannot be read",
        f"{file} is damaged, from an older version, or no study file: {reason}",
        "Run the study again, which writes the file anew from what is kept, or fetch the file again from where it came."
        " Other studies are not affected.",
    )


def out_of_memory() -> PageError:
    """503: the page's queries take more memory than there is."""
    return PageError(
        503,
        "That takes too much memory",
        "The queries behind this page need more memory than the server has.",
        "Filter to fewer latents, or try again when the machine is less busy.",
    )


def timed_out(seconds: float) -> PageError:
    """503: the page's queries ran into the time limit."""
    return PageError(
        503,
        "That took too long",
        f"The queries behind this page were stopped after {seconds:g} seconds.",
        "Filter to fewer latents, try again when the machine is less busy, or raise LINEUP_QUERY_SECONDS.",
    )


def _short(value: object, most: int = 200) -> str:
    """A value as it was given, or its beginning; half a character, which no page can hold, as its code."""
    text = str(value)
    return f"{text[:most]}{'…' if len(text) > most else ''}".encode(errors="backslashreplace").decode()


def _listed(values: Iterable[object], most: int = 40) -> str:
    items = [str(value) for value in values]
    more = f" … and {len(items) - most:,} more" if len(items) > most else ""
    return (", ".join(items[:most]) + more) or "nothing yet"
