"""Labels in a DuckDB file, as they were kept before: they are copied once, and the file is kept under another name."""

import json
import logging
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

UNSAID = {"min_answered": 0.0}
"""What designs that were kept before a field was there meant by it."""

_TABLES = {
    "meta": "SELECT hex(cookie_secret) AS cookie_secret, created_at FROM meta",
    "experiments": "FROM experiments",
    "items": "SELECT i.*, p.pair, p.role, i.item = p.trained_item AS trained FROM items i JOIN pairs p"
    " ON p.experiment = i.experiment AND i.item IN (p.trained_item, p.random_item)",
    "sessions": "FROM sessions",
    "trials": "FROM trials",
    "labels": "SELECT * EXCLUDE (session) FROM labels",
}


def find(path: Path) -> Path | None:
    """The old file whose labels belong into the one at `path`, if there is one."""
    old = path.with_suffix(".duckdb")
    return old if old != path and old.exists() else None


def rows(old: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of it, by table, as the tables are now; raises duckdb.Error for a file that is damaged, or is none.

    In version 1 nothing tied sessions together: each is a browser's, or a program's, own.
    """
    # DuckDB would fetch an extension for a file that another program made.
    config: dict[str, Any] = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    with duckdb.connect(str(old), read_only=True, config=config) as connection:
        log = old.with_name(f"{old.name}.wal")
        if log.exists():
            ((read,),) = connection.execute("SELECT wal_size <> '0 bytes' FROM pragma_database_size()").fetchall()
            if _passed_over(log.read_bytes(), read):
                raise duckdb.DataError(f"the log of the old file, {log.name}, cannot be read to its end")
        for table, sql in _TABLES.items():
            result = connection.execute(sql)
            names = [column[0] for column in result.description or ()]
            for values in result.fetchall():
                row = dict(zip(names, values, strict=True))
                if table == "sessions":
                    row["client"] = row.get("client") or row["session"]
                if table == "experiments":
                    row["design"] = json.dumps(UNSAID | json.loads(row["design"]), ensure_ascii=False)
                yield table, row


def put_aside(old: Path, path: Path) -> None:
    """Name the old file so that it is seen to be one, unless there is one of that name, and tell the terminal."""
    kept = old.with_name(f"{old.name}-old")
    if kept.exists():
        return
    with suppress(FileNotFoundError):  # it has no log, or another server was quicker
        old.rename(kept)
        old.with_name(f"{old.name}.wal").rename(kept.with_name(f"{kept.name}.wal"))
    logging.getLogger(__name__).warning(
        "The labels in %s are in %s now; the old file is kept as %s.", old.name, path.name, kept.name
    )


def _passed_over(log: bytes, begun: bool) -> bool:
    """Whether DuckDB has left out whole entries of its log: it ends with one, but its lengths do not lead there.

    An entry is its length, a checksum (8 bytes each) and as many bytes as the length says; the first begins within 128
    bytes. DuckDB takes one that reaches past the end for one whose writing was cut off, drops it and all that follow,
    and says nothing. `begun` is false where it has read nothing of the log.
    """
    return _ends_with_an_entry(log) and not (begun and any(_leads_to_the_end(log, at) for at in range(128)))


def _ends_with_an_entry(log: bytes) -> bool:
    for shift in range(8):
        lengths = np.frombuffer(log, "<u8", max(0, len(log) - shift) // 8, shift)
        left = len(log) - 16 - shift - 8 * np.arange(len(lengths))
        if np.any((lengths == left) & (left > 0)):
            return True
    return False


def _leads_to_the_end(log: bytes, at: int) -> bool:
    while at + 16 < len(log):
        at += 16 + int(struct.unpack_from("<Q", log, at)[0])
    return at == len(log)
