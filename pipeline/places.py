"""Paths that a study names, checked that they can be looked at."""

from pathlib import Path

from core.errors import UserError, shown


def place_of(text: str, key: str) -> Path:
    """The path, `~` expanded; it need not exist. `key` is where the study names it.

    Raises UserError for an unknown user's home, and for a path that the system does not look at.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(
            f"{key} names {shown(text)}, which cannot be looked at: {reason}. Name another path."
        ) from error
    return path
