"""The file of labels: one writer at a time, behind a lock; what a transaction wrote is on disk when it returns."""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from app.blind import tables, wal
from app.errors import PageError
from app.study.files import FATAL, first_line
from core.errors import UserError

SCHEMA_VERSION = 2
"""Files of version 1 are brought to it when they are opened; then only programs that know it can open them."""


class LabelFile:
    """An open file of labels, made if it is not there; raises UserError when it cannot be had.

    DuckDB syncs its write-ahead log at every commit (fdatasync), so a committed row outlives `kill -9` and, as far as
    the disk keeps its word, a power cut. `checkpoint_bytes` is the size of the log at which it goes into the file.
    """

    def __init__(self, path: Path, checkpoint_bytes: int = 16 * 2**20) -> None:
        self._path, self._checkpoint_bytes = path, checkpoint_bytes
        self._lock, self._reopening = threading.Lock(), threading.Lock()
        self._broken: tables.Connection | None = None
        try:
            if not path.exists():
                _make(path)
            self.cookie_secret = _checked(path)
            self._connection = _connect(path, checkpoint_bytes)
            self._migrate()
        except (duckdb.Error, OSError, PageError) as error:
            raise _unavailable(path, error) from error

    @contextmanager
    def transaction(self) -> Iterator[tables.Connection]:
        """All that is written in the block, or, if anything is raised, nothing of it; raises a 503 if it cannot be."""
        with self._lock, self._guarded() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # A commit that failed has left no transaction to roll back.
                with suppress(duckdb.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[tables.Connection]:
        """A cursor that shows what is committed; a long query on it keeps no answer waiting."""
        with self._guarded() as connection, connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def _guarded(self) -> Iterator[tables.Connection]:
        connection = None
        try:
            connection = self._usable()
            yield connection
        except duckdb.Error as error:
            if isinstance(error, FATAL):
                self._broken = connection or self._broken
            raise self._failed(error) from error

    def _usable(self) -> tables.Connection:
        # DuckDB refuses everything after a checkpoint that failed, as on a full disk, until the file is opened anew.
        with self._reopening:
            if self._broken is self._connection:
                self._connection.close()
                _checked(self._path)
                self._connection = _connect(self._path, self._checkpoint_bytes)
            return self._connection

    def _failed(self, error: duckdb.Error) -> PageError:
        return PageError(
            503,
            "That was not saved",
            f"The file of labels, {self._path.name}, could not be read or written: {first_line(error)}",
            "Nothing that was saved before is lost. Try again; if it goes on, tell whoever runs this server.",
        )

    def close(self) -> None:
        """Bring everything into the one file and let go of it."""
        with self._lock:
            self._connection.close()

    def _migrate(self) -> None:
        """Bring a file of version 1 to this one."""
        with self.reading() as connection:
            version, _ = tables.meta(connection)
        if version == 1:
            with self.transaction() as connection:
                tables.migrate(connection)


def _checked(path: Path) -> bytes:
    """Read the file once from end to end before anything may write to it; gives the secret of its cookies.

    A damaged file that is opened for writing would take what its log holds, and what is damaged is gone then.
    """
    with duckdb.connect(str(path), read_only=True) as connection:
        version, secret = tables.meta(connection)
        if version not in (1, SCHEMA_VERSION):
            raise UserError(
                f"'{path.name}' has labels in version {version} of the schema, this program knows {SCHEMA_VERSION}:"
                " use the program that made it, or name another file in LINEUP_LABELS."
            )
        tables.read_all(connection)
        log = path.with_name(f"{path.name}.wal")
        if log.exists() and wal.passed_over(log.read_bytes(), tables.log_begun(connection)):
            raise duckdb.DataError(f"its log, {log.name}, cannot be read to its end")
        return secret


def _connect(path: Path, checkpoint_bytes: int) -> tables.Connection:
    connection = duckdb.connect(str(path), config={"threads": 1, "enable_external_access": False})
    try:
        connection.execute(f"SET checkpoint_threshold = '{checkpoint_bytes} bytes'")
        connection.execute("SET lock_configuration = true")
    except duckdb.Error:
        connection.close()
        raise
    return connection


def _make(path: Path) -> None:
    # Made beside its place and linked there whole: DuckDB cannot open a file whose making was interrupted.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # DuckDB makes its log readable by others
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with duckdb.connect(str(draft)) as connection:
            draft.chmod(0o600)
            tables.create(connection, SCHEMA_VERSION, secrets.token_bytes(32))
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)


def _unavailable(path: Path, error: Exception) -> UserError:
    if "set lock on file" in str(error):
        return UserError(
            f"'{path.name}' is in use by another program, and only one can keep labels in it: stop that program, or"
            " name another file in LINEUP_LABELS."
        )
    return UserError(
        f"Cannot keep labels in '{path.name}': {first_line(error)} Nothing in it was changed. Put back a copy of"
        " it that is whole, or name another file in LINEUP_LABELS; studies can be looked at all the same."
    )
