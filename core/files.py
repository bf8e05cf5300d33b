"""Writing files whole or not at all, and one sentence for a disk that cannot be written to."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError

FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""What the system calls a full disk: no space left, a quota, a limit on the size of files."""


@contextmanager
def writing(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Raise UserError for whatever keeps `path` from being written: an OSError, one of `kinds`, or a full disk.

    That last one safetensors, tokenizers and DuckDB tell by errors of their own, with the system's words in them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _reason(error, (OSError, *kinds))
        if reason is None:
            raise
        advice = "make room" if reason in FULL else "mend that"
        raise UserError(
            f"Cannot write '{path}': {reason}. What is finished is kept: {advice}, then run the same command again."
        ) from error


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """A file beside `path` to write to: it takes the place of `path` when the block ends, and is gone when it fails.

    `mark` is put into its name, where several programs may write the same file at once.
    """
    partial = path.with_name(f"{path.name}{mark}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _reason(error: Exception, kinds: tuple[type[Exception], ...]) -> str | None:
    """The system's own words, where it has any; None for an error that is not the disk's."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    full = next((words for words in FULL if words in str(error)), None)
    return full or (str(error).partition("\n")[0].rstrip(".") if isinstance(error, kinds) else None)


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of its files, to the disk: it is there after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
