"""Paths that a study names: text comes in, a path that can be looked at goes out."""

from pathlib import Path

from pipeline.errors import LineupError, shown


def place_of(text: str, key: str) -> Path:
    """The path, `~` expanded; it need not exist. `key` is where the study names it.

    Raises LineupError for an unknown user's home, and for a path that the system does not look at.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise LineupError(
            f"{key} names {shown(text)}, which cannot be looked at: {reason}. Name another path."
        ) from error
    return path
