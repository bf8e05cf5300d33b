"""What surrounds a run: its lock, signals, and how its end is told."""

import fcntl
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import BrokenError, UserError
from pipeline import hardware
from pipeline.progress import Progress

TRACEBACK = "traceback.txt"
"""In a study's folder: of the error that ended its last run, where that was not the user's."""

MOST_SAID = 200
"""Characters of such an error's own words that are repeated."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the study's lock, so that two runs do not write the same artefacts. Raises UserError where it is held."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Cannot write to '{folder}': {error.strerror}. Make room, or choose another folder with --runs."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"The study in '{folder}' is being run by another process: wait for it.") from error
        (folder / TRACEBACK).unlink(missing_ok=True)
        yield


@contextmanager
def end_told(progress: Progress, folder: Path) -> Iterator[None]:
    """Write to the progress how the run ends. Raises UserError for whatever the user can mend, BrokenError for any
    other error, whose traceback is kept in the study's folder.
    """
    try:
        with _ended_by_sigterm(progress), hardware.enough_memory():
            yield
    except UserError as error:
        progress.failed(str(error))
        raise
    except KeyboardInterrupt:
        progress.stopped()
        raise
    except Exception as error:
        note = folder / TRACEBACK
        with suppress(OSError):  # on a disk that is full as well
            note.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
        progress.failed(_unexpected(error, note.relative_to(folder.parent)))
        raise BrokenError(_unexpected(error, note)) from error
    progress.done()


def _unexpected(error: Exception, note: Path) -> str:
    words = " ".join(str(error).split())[:MOST_SAID].rstrip(".").encode(errors="backslashreplace").decode()
    name = type(error).__name__
    return f"An unexpected error ended the run, {f'{name}: {words}' if words else name}. Its traceback is in {note}."


@contextmanager
def _ended_by_sigterm(progress: Progress) -> Iterator[None]:
    """Exit at once on SIGTERM: artefacts are crash-safe, and joining worker threads could hang."""

    def end(*_: object) -> None:
        progress.stopped()
        os._exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
