"""The file of labels: a SQLite file that one server holds, all SQL on it, and how damage to it is noticed."""

import json
import os
import secrets
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import numpy as np

from app.blind import old_labels
from app.errors import PageError
from app.study.files import first_line
from core.errors import UserError
from core.files import flush

Connection: TypeAlias = sqlite3.Connection
Row: TypeAlias = dict[str, Any]

SCHEMA = Path(__file__).parent / "schema.sql"
SCHEMA_VERSION = 3
"""Versions 1 and 2 were DuckDB files: see `old_labels`."""


def now() -> datetime:
    """The time as the file keeps it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


# ---- the file ----


class LabelFile:
    """An open file of labels, made if it is not there; raises UserError when it cannot be had.

    SQLite syncs its write-ahead log at every commit, so a committed row outlives `kill -9` and, as far as the disk
    keeps its word, a power cut. `checkpoint_bytes` is the size of the log at which it goes into the file.
    """

    def __init__(self, path: Path, checkpoint_bytes: int = 4 * 2**20) -> None:
        self._path, self._log, self._checkpoint_bytes = path, _log_of(path), checkpoint_bytes
        self._lock = threading.Lock()
        try:
            if not path.exists():
                _make(path)
            self.cookie_secret = _check(path)
            self._connection = _connect(path)
        except (sqlite3.Error, duckdb.Error, OSError) as error:
            raise _unavailable(path, error) from error

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All that is written in the block, or, if anything is raised, nothing of it; raises a 503 if it cannot be."""
        with self._held() as connection:
            if self._log_bytes() >= self._checkpoint_bytes:
                # Emptied, as the log is only ever to be appended to: see `_image`. Where that fails, the disk is full.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            end = self._log_bytes()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a commit that failed may have ended it
                    connection.execute("ROLLBACK")
                # What was written of it goes: behind the frames of the next one, `_image` would take it for damage.
                with suppress(FileNotFoundError):
                    os.truncate(self._log, end)
                raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """The connection, for reading what is committed; answers wait, so queries should be short."""
        with self._held() as connection:
            yield connection

    @contextmanager
    def _held(self) -> Iterator[Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise PageError(
                    503,
                    "That was not saved",
                    f"The file of labels, {self._path.name}, could not be read or written: {first_line(error)}",
                    "Nothing that was saved before is lost. Try again; if it goes on, tell whoever runs this server.",
                ) from error

    def _log_bytes(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def close(self) -> None:
        """Bring everything into the one file and let go of it."""
        with self._lock:
            self._connection.close()


def is_there(path: Path) -> bool:
    """Whether there is a file of labels at `path`, or one of DuckDB's that will be copied to it."""
    return path.exists() or old_labels.find(path) is not None


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _connect(path: Path) -> Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1, isolation_level=None, check_same_thread=False
    )
    try:
        # Exclusive: a second server is refused, over a network too, and there is no shared memory that may not work.
        for setting in (
            "locking_mode = EXCLUSIVE",
            "synchronous = FULL",
            "foreign_keys = ON",
            "wal_autocheckpoint = 0",
        ):
            connection.execute(f"PRAGMA {setting}")
        connection.executescript("BEGIN IMMEDIATE; COMMIT")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _make(path: Path) -> None:
    # Made beside its place and linked there whole: an empty file in its place is a file that lost its labels.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft, old = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"), old_labels.find(path)
    try:
        draft.touch(mode=0o600)
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.executescript(f"BEGIN; {SCHEMA.read_text(encoding='utf-8')}")
            _fill(connection, old)
            connection.execute("COMMIT")
        with suppress(FileExistsError):
            path.hardlink_to(draft)
            flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)
    if old is not None:
        old_labels.put_aside(old, path)


def _fill(connection: Connection, old: Path | None) -> None:
    meta: Row = {"schema_version": SCHEMA_VERSION, "schema_checksum": _schema_checksum(connection)}
    if old is None:
        _insert(connection, "meta", meta | {"cookie_secret": secrets.token_hex(32), "created_at": now()})
    else:
        for table, row in old_labels.rows(old):
            _insert(connection, table, row | (meta if table == "meta" else {}))


def _unavailable(path: Path, error: Exception) -> UserError:
    if any(said in str(error) for said in ("database is locked", "set lock on file")):
        return UserError(
            f"'{path.name}' is in use by another program, and only one can keep labels in it: stop that program, or"
            " name another file in LINEUP_LABELS."
        )
    return UserError(
        f"Cannot keep labels in '{path.name}': {first_line(error)} Nothing in it was changed. Put back a copy of"
        " it that is whole, or name another file in LINEUP_LABELS; studies can be looked at all the same."
    )


# ---- whether it is whole ----


def _check(path: Path) -> bytes:
    """Read the file from end to end before anything may write to it; gives the secret of its cookies.

    In memory, for SQLite itself would bring the log into a file that is damaged, and what is damaged is gone then.
    Structure and indices are checked by SQLite, values by the checksum of each row.
    """
    # The log first: what another server brings from it into the file meanwhile is then in what was read of it.
    log = _log_of(path).read_bytes() if _log_of(path).exists() else b""
    main = path.read_bytes()
    if main[8:12] == b"DUCK":
        raise sqlite3.DatabaseError("it is a DuckDB file; with a name that ends in .duckdb, labels in it are copied")
    if not main.startswith(b"SQLite format 3\0"):
        raise sqlite3.DatabaseError("it is no file of labels")
    image = _image(log, main)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.row_factory = sqlite3.Row
        connection.deserialize(bytes(image))
        try:
            return bytes.fromhex(_checked_meta(connection, path.name)["cookie_secret"])
        except UnicodeDecodeError as error:  # of what SQLite says of a table
            raise sqlite3.DatabaseError("it is damaged: its tables are not as they were made") from error


def _checked_meta(connection: Connection, name: str) -> Row:
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"it is damaged: {' '.join(found.split())}")
    tables = [table for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    meta = connection.execute("SELECT * FROM meta").fetchone() if "meta" in tables else None
    if meta is None:
        raise sqlite3.DatabaseError("it holds no labels")
    if meta["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"'{name}' has labels in version {meta['schema_version']} of the schema, this program knows"
            f" {SCHEMA_VERSION}: use the program that made it, or name another file in LINEUP_LABELS."
        )
    if meta["schema_checksum"] != _schema_checksum(connection):
        raise sqlite3.DatabaseError("it is damaged: its tables are not as they were made")
    for table in tables:
        rows = map(dict, connection.execute(f"SELECT * FROM {table}"))
        if not all(row["checksum"] == _checksum(row) for row in rows):
            raise sqlite3.DatabaseError(f"it is damaged: a row of '{table}' is not as it was written")
    return dict(meta)


def _image(log: bytes, main: bytes) -> bytearray:
    """The database as SQLite reads it, with what its log holds; raises sqlite3.Error where SQLite would lose something.

    SQLite takes a frame with a wrong checksum for the end of the log, and says nothing: one flipped bit would be every
    answer since. But this log is only ever appended to, so a write that was cut off leaves a part of a frame, or zeros
    after a power cut. A whole frame that is wrong is damage.
    """
    image = bytearray(main)
    pending: list[tuple[int, bytes]] = []
    for number, pages, page in _frames(log):
        pending.append((len(page) * (number - 1), page))
        if pages:  # the last frame of a transaction: so many pages has the database then
            for at, content in pending:
                image[at : at + len(content)] = bytes(max(0, at - len(image))) + content
            del image[len(page) * pages :]
            pending.clear()
    if image[18:20] == b"\2\2":  # that there is a log; in memory there can be none
        image[18:20] = b"\1\1"
    return image


def _frames(log: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Page number, pages of the database if a transaction ends with the frame, content of the page.

    The format is at www.sqlite.org/fileformat2.html#walformat.
    """
    head, frame_head = 32, 24
    if len(log) < head or not any(log):
        return
    magic, _, size = struct.unpack_from(">3I", log)
    order = "<u4" if magic == 0x377F0682 else ">u4"
    sums = _log_checksums(log[:24], order, (0, 0))
    if sums != struct.unpack_from(">2I", log, 24):
        raise sqlite3.DatabaseError("its log is damaged at the beginning")
    for at in range(head, len(log) - size - frame_head + 1, size + frame_head):
        page = log[at + frame_head : at + frame_head + size]
        sums = _log_checksums(log[at : at + 8] + page, order, sums)
        if log[at + 8 : at + 24] != log[16:24] + struct.pack(">2I", *sums):
            if any(log[at:]):
                raise sqlite3.DatabaseError(f"its log is damaged {at:,} bytes from the beginning")
            return
        number, pages = struct.unpack_from(">2I", log, at)
        yield number, pages, page


def _log_checksums(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = np.frombuffer(data, order).tolist()
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = first + even + second & 0xFFFFFFFF
        second = second + odd + first & 0xFFFFFFFF
    return first, second


def _checksum(row: Mapping[str, Any]) -> int:
    # 2 and 2.0 are one number: SQLite keeps whichever the column is for.
    values = {
        name: int(value) if isinstance(value, float) and value.is_integer() else _stored(value)
        for name, value in row.items()
        if name != "checksum" and value is not None
    }
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _schema_checksum(connection: Connection) -> int:
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    return zlib.crc32(json.dumps([*map(tuple, found)]).encode())


# ---- rows ----

_READ: dict[str, Callable[[Any], Any]] = dict.fromkeys(
    ("created_at", "frozen_at", "closed_at", "started_at", "finished_at", "written_at"), datetime.fromisoformat
) | dict.fromkeys(("trained", "left_early", "open", "practice_session"), bool)
"""What makes of a column the value that it stands for."""


def _stored(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(" ", "microseconds")
    return int(value) if isinstance(value, bool) else value


def _rows(connection: Connection, sql: str, *parameters: object) -> list[Row]:
    cursor = connection.execute(sql, parameters)
    columns = [(column[0], _READ.get(column[0])) for column in cursor.description]
    return [
        {
            name: read(value) if read and value is not None else value
            for (name, read), value in zip(columns, row, strict=True)
        }
        for row in cursor
    ]


def _row(connection: Connection, sql: str, *parameters: object) -> Row | None:
    found = _rows(connection, sql, *parameters)
    return found[0] if found else None


def _insert(connection: Connection, table: str, row: Row) -> None:
    values = row | {"checksum": _checksum(row)}
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [_stored(v) for v in values.values()])


def _update(connection: Connection, table: str, key: str, changes: Row) -> None:
    """Change a row of a table whose key has the table's name in the singular."""
    column = table.removesuffix("s")
    (row,) = _rows(connection, f"SELECT * FROM {table} WHERE {column} = ?", key)
    changes = changes | {"checksum": _checksum(row | changes)}
    sets = ", ".join(f"{name} = ?" for name in changes)
    connection.execute(f"UPDATE {table} SET {sets} WHERE {column} = ?", [*map(_stored, changes.values()), key])


def insert_experiment(connection: Connection, values: Row, items: Sequence[Row]) -> None:
    """Add an experiment with its latents."""
    _insert(connection, "experiments", values)
    for item in items:
        _insert(connection, "items", item)


def experiment(connection: Connection, column: str, value: str) -> Row | None:
    """The experiment with this id, invitation or hash of the organiser's token."""
    assert column in ("experiment", "invite", "organiser_sha256")
    return _row(connection, f"SELECT * FROM experiments WHERE {column} = ?", value)


def freeze(connection: Connection, experiment: str) -> None:
    """Note the first answer that counts."""
    _update(connection, "experiments", experiment, {"frozen_at": now()})


def close(connection: Connection, experiment: str) -> None:
    """Note the end."""
    _update(connection, "experiments", experiment, {"closed_at": now()})


def items(connection: Connection, experiment: str) -> list[Row]:
    """The experiment's latents, without evidence; of a pair, the trained one first."""
    return _rows(
        connection,
        "SELECT item, pair, role, trained, sae, variant, layer, latent, density, statistics FROM items"
        " WHERE experiment = ? ORDER BY pair, trained DESC",
        experiment,
    )


def evidence(connection: Connection, experiment: str, item: int) -> Row:
    """`evidence` and `gold_evidence` of a latent, as JSON."""
    sql = "SELECT evidence, gold_evidence FROM items WHERE experiment = ? AND item = ?"
    return _rows(connection, sql, experiment, item)[0]


def insert_session(connection: Connection, values: Row, trials: Sequence[Row]) -> None:
    """Add a session with its trials."""
    _insert(connection, "sessions", values)
    for trial in trials:
        _insert(connection, "trials", trial)


def session(connection: Connection, column: str, value: str) -> Row | None:
    """The session with this token, or with this hash of a bearer token, and when its experiment froze and closed."""
    assert column in ("session", "token_sha256")
    return _row(
        connection,
        "SELECT s.*, e.frozen_at, e.closed_at FROM sessions s JOIN experiments e USING (experiment)"
        f" WHERE s.{column} = ?",
        value,
    )


def pseudonyms(connection: Connection, experiment: str) -> list[str]:
    """Those of all of an experiment's sessions."""
    return [row["pseudonym"] for row in _rows(connection, "SELECT * FROM sessions WHERE experiment = ?", experiment)]


def finish(connection: Connection, session: str, left_early: bool) -> None:
    """Note that a session is over, and since when."""
    _update(connection, "sessions", session, {"finished_at": now(), "left_early": left_early})


def trials(connection: Connection, session: str) -> list[Row]:
    """A session's trials in order, each with its number of `revisions` and the event of the `last` one."""
    # SQLite takes a bare column from the row that has the maximum.
    return _rows(
        connection,
        "SELECT trial, t.position, t.kind, t.truth, coalesce(max(l.revision), 0) AS revisions, l.event AS last"
        " FROM trials t LEFT JOIN labels l USING (trial) WHERE t.session = ? GROUP BY trial ORDER BY t.position",
        session,
    )


def trial(connection: Connection, session: str, trial: str) -> Row | None:
    """What a trial shows, if it is one of the session: `kind`, `left_item`, `right_item`, `experiment`."""
    return _row(
        connection,
        "SELECT t.kind, t.left_item, t.right_item, s.experiment FROM trials t JOIN sessions s USING (session)"
        " WHERE t.trial = ? AND t.session = ?",
        trial,
        session,
    )


def sessions_of(connection: Connection, client: str) -> list[Row]:
    """A client's sessions in the order of joining: whether each is `open`, and answers to what is not practice."""
    return _rows(
        connection,
        """
        SELECT s.*, s.finished_at IS NULL AND e.closed_at IS NULL AS open,
               (SELECT count(*) FROM trials t JOIN labels USING (trial)
                WHERE t.session = s.session AND t.kind <> 'practice') AS answers
        FROM sessions s JOIN experiments e USING (experiment) WHERE s.client = ? ORDER BY s.started_at, s.session
        """,
        client,
    )


def answered_latents(connection: Connection, client: str) -> list[Row]:
    """Study, variant, layer and index of every latent that a client has given an answer to, practice too."""
    return _rows(
        connection,
        """
        SELECT DISTINCT e.study, i.variant, i.layer, i.latent
        FROM sessions s JOIN experiments e USING (experiment) JOIN trials t USING (session) JOIN labels USING (trial)
        JOIN items i ON i.experiment = s.experiment AND i.item IN (t.left_item, t.right_item)
        WHERE s.client = ?
        """,
        client,
    )


def label(connection: Connection, trial: str, revision: int) -> Row:
    """A row of the log that is there."""
    return _rows(connection, "SELECT * FROM labels WHERE trial = ? AND revision = ?", trial, revision)[0]


def insert_label(connection: Connection, values: Row) -> None:
    """Add a row to the log."""
    _insert(connection, "labels", {**values, "written_at": now()})


def standing(connection: Connection, experiment: str) -> list[Row]:
    """Every trial of an experiment with the last row of its log; `other_density` is that of the latent on the right."""
    return _rows(
        connection,
        """
        SELECT s.session, s.pseudonym, s.kind AS rater, s.practice, s.started_at, s.finished_at, s.left_early,
               t.position, t.kind, t.truth, t.repeats, a.pair, t.left_item AS "left", t.right_item AS "right",
               r.variant, r.layer, a.density, b.density AS other_density,
               l.event, l.answer, l.reason, l.seconds, l.hidden_seconds, coalesce(l.revision, 0) AS revisions
        FROM sessions s JOIN trials t USING (session)
        JOIN items a ON a.experiment = s.experiment AND a.item = t.left_item
        JOIN items r ON r.experiment = s.experiment AND r.pair = a.pair AND NOT r.trained
        LEFT JOIN items b ON b.experiment = s.experiment AND b.item = t.right_item
        LEFT JOIN labels l ON l.trial = t.trial
             AND l.revision = (SELECT max(revision) FROM labels WHERE trial = t.trial)
        WHERE s.experiment = ? ORDER BY s.started_at, s.session, t.position
        """,
        experiment,
    )


def log(connection: Connection, experiment: str) -> list[Row]:
    """Every row of the log of an experiment, in the order of writing."""
    return _rows(
        connection,
        """
        SELECT s.session, s.pseudonym, s.kind AS rater, s.practice IS NOT NULL AS practice_session, t.position, t.kind,
               t.truth, t.left_item AS "left", t.right_item AS "right", l.trial, l.revision, l.event, l.answer,
               l.reason, l.seconds, l.hidden_seconds, l.written_at
        FROM labels l JOIN trials t USING (trial) JOIN sessions s ON s.session = t.session
        WHERE s.experiment = ? ORDER BY l.written_at, s.session, t.position, l.revision
        """,
        experiment,
    )
