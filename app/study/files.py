"""Finds study files and opens them: one read-only connection a file, one cursor a request, a time limit on both.

The pipeline replaces a file while pages are being read. A connection goes on showing the old content, so each request
first looks whether the file is still the one that is open.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import duckdb

from app.errors import PageError, damaged, out_of_memory, timed_out
from core.errors import without_folders
from core.progress import Progress, read_progress

Row: TypeAlias = dict[str, Any]
Signature: TypeAlias = tuple[int, int, int]


FATAL = (duckdb.FatalException, duckdb.InternalException)
"""Errors after which DuckDB refuses every further query, until the file is opened anew."""


class Reader:
    """Runs the queries of one request; raises PageError when the time is up or the file cannot be read."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, path: Path, seconds: float) -> None:
        self._cursor, self._path, self._seconds = cursor, path, seconds
        self._deadline = time.monotonic() + seconds
        self.broken = False
        """Whether the connection is of no more use."""

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """All rows of a query, as dictionaries."""
        if time.monotonic() >= self._deadline:
            raise timed_out(self._seconds)
        try:
            result = self._cursor.execute(sql, list(parameters))
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        except duckdb.InterruptException as error:
            raise timed_out(self._seconds) from error
        except duckdb.OutOfMemoryException as error:
            raise out_of_memory() from error
        except duckdb.Error as error:
            # A block whose checksum is wrong is a plain duckdb.Error; tables that are missing, a CatalogException.
            self.broken = isinstance(error, FATAL)
            raise damaged(self._path.name, first_line(error)) from error

    def row(self, sql: str, parameters: Sequence[object] = ()) -> Row | None:
        """The first row of a query, or None."""
        found = self.rows(sql, parameters)
        return found[0] if found else None


@dataclass(frozen=True)
class _Open:
    signature: Signature
    connection: duckdb.DuckDBPyConnection


class Database:
    """The open study files of one server."""

    def __init__(self, query_seconds: float) -> None:
        self._seconds = query_seconds
        self._open: dict[Path, _Open] = {}
        self._cursors: set[duckdb.DuckDBPyConnection] = set()
        self._lock = threading.Lock()

    @contextmanager
    def reading(self, path: Path) -> Iterator[Reader]:
        """A reader of what the file holds now, good for one request."""
        connection = self._connection(path)
        with connection.cursor() as cursor:
            alarm = threading.Timer(self._seconds, cursor.interrupt)
            alarm.daemon = True
            alarm.start()
            self._cursors.add(cursor)
            reader = Reader(cursor, path, self._seconds)
            try:
                reader.rows("USE study")
                yield reader
            finally:
                self._cursors.discard(cursor)
                alarm.cancel()
                if reader.broken:
                    self._forget(path, connection)

    def interrupt(self) -> None:
        """End all queries that are under way, as when the time is up."""
        for cursor in tuple(self._cursors):
            cursor.interrupt()

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for entry in self._open.values():
                entry.connection.close()
            self._open.clear()

    def _connection(self, path: Path) -> duckdb.DuckDBPyConnection:
        signature = _signature(path)
        with self._lock:
            entry = self._open.get(path)
            if entry is None or entry.signature != signature:
                # The old connection is dropped, not closed: requests under way hold cursors on it.
                entry = self._open[path] = _Open(signature, _attach(path))
            return entry.connection

    def _forget(self, path: Path, connection: duckdb.DuckDBPyConnection) -> None:
        with self._lock:
            if path in self._open and self._open[path].connection is connection:
                del self._open[path]


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError as error:
        raise PageError(404, "This study is gone", f"{path.name} is no longer there.", "Choose another.") from error
    return status.st_ino, status.st_mtime_ns, status.st_size


def _attach(path: Path) -> duckdb.DuckDBPyConnection:
    # duckdb.connect(path) would hand back the instance that still shows the replaced file, because DuckDB
    # keeps one instance a path; an in-memory instance that attaches the file is always a new one.
    connection = duckdb.connect(":memory:")
    quoted = str(path).replace("'", "''")
    try:
        connection.execute(f"ATTACH '{quoted}' AS study (READ_ONLY, TYPE duckdb)")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    except duckdb.Error as error:
        connection.close()
        raise damaged(path.name, first_line(error)) from error
    return connection


def first_line(error: Exception) -> str:
    """What DuckDB says, without folders, hints and positions."""
    line = without_folders(str(error).splitlines()[0])
    if "not a valid DuckDB database" in line:
        return "it is not a DuckDB database."
    return line.split("Error: ", 1)[-1].rstrip(".!") + "."


@dataclass(frozen=True)
class Entry:
    """A study that was found: its file, once there is one, and its progress, while there is any."""

    name: str
    path: Path | None
    progress: Progress | None

    @property
    def building(self) -> bool:
        """Whether the study is being built, was stopped, or failed."""
        return self.progress is not None and self.progress.building


class StudyPendingError(Exception):
    """The study has no file yet, only progress."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.name)
        self.entry = entry


def find_entries(paths: Iterable[Path]) -> list[Entry]:
    """Look for studies now: files as given, and what lies directly in folders; sorted by name within a folder."""
    found: dict[str, Entry] = {}
    for path in paths:
        for file, folder in _candidates(path):
            entry = _entry(file, folder)
            if entry is not None:
                name = _free_name(entry.name, found)
                found[name] = Entry(name, entry.path, entry.progress)
    return list(found.values())


def _candidates(path: Path) -> list[tuple[Path, Path]]:
    if path.suffix == ".duckdb":
        return [(path, path.with_suffix(""))]
    try:
        children = sorted(path.iterdir())
    except OSError:
        return []
    stems = {child.stem: None for child in children if child.suffix == ".duckdb"}
    stems |= {child.name: None for child in children if (child / "progress.json").is_file()}
    return [(path / f"{stem}.duckdb", path / stem) for stem in sorted(stems)]


def _entry(file: Path, folder: Path) -> Entry | None:
    there = file.is_file()
    progress = read_progress(folder / "progress.json")
    return Entry(file.stem, file if there else None, progress) if there or progress else None


def _free_name(name: str, taken: dict[str, Entry]) -> str:
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(free for free in numbered if free not in taken)
