"""Labels that were kept in a DuckDB file are taken over once, all of them, and the old file stays."""

import logging
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from small_experiment import answer, begin, design, finish, past_practice

from app.blind.access import labels_path
from app.blind.store import LabelStore
from core.errors import UserError

SCHEMA = """
CREATE TABLE meta (schema_version INTEGER NOT NULL, cookie_secret BLOB NOT NULL, created_at TIMESTAMP NOT NULL);
CREATE TABLE experiments (
    experiment VARCHAR PRIMARY KEY, title VARCHAR NOT NULL, design VARCHAR NOT NULL, study VARCHAR NOT NULL,
    organiser_sha256 VARCHAR NOT NULL, invite VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL, frozen_at TIMESTAMP,
    closed_at TIMESTAMP);
CREATE TABLE items (
    experiment VARCHAR NOT NULL, item INTEGER NOT NULL, sae INTEGER NOT NULL, variant VARCHAR NOT NULL,
    layer INTEGER NOT NULL, latent INTEGER NOT NULL, density DOUBLE NOT NULL, statistics VARCHAR NOT NULL,
    evidence VARCHAR NOT NULL, gold_evidence VARCHAR, PRIMARY KEY (experiment, item));
CREATE TABLE pairs (
    experiment VARCHAR NOT NULL, pair INTEGER NOT NULL, role VARCHAR NOT NULL, trained_item INTEGER NOT NULL,
    random_item INTEGER NOT NULL, PRIMARY KEY (experiment, pair));
CREATE TABLE sessions (
    session VARCHAR PRIMARY KEY, experiment VARCHAR NOT NULL, pseudonym VARCHAR NOT NULL, kind VARCHAR NOT NULL,
    seed BIGINT NOT NULL, token_sha256 VARCHAR, started_at TIMESTAMP NOT NULL, finished_at TIMESTAMP,
    left_early BOOLEAN NOT NULL, client VARCHAR, practice VARCHAR);
CREATE TABLE trials (
    trial VARCHAR PRIMARY KEY, session VARCHAR NOT NULL, position INTEGER NOT NULL, kind VARCHAR NOT NULL,
    left_item INTEGER NOT NULL, right_item INTEGER, truth VARCHAR NOT NULL, repeats INTEGER);
CREATE TABLE labels (
    trial VARCHAR NOT NULL, revision INTEGER NOT NULL, session VARCHAR NOT NULL, event VARCHAR NOT NULL,
    answer INTEGER, reason VARCHAR, seconds DOUBLE, hidden_seconds DOUBLE, written_at TIMESTAMP NOT NULL,
    PRIMARY KEY (trial, revision));
"""
"""Version 2, as the program made it that kept labels in DuckDB."""

COLUMNS = {
    "experiments": "*",
    "items": "experiment, item, sae, variant, layer, latent, density, statistics, evidence, gold_evidence",
    "sessions": "session, experiment, pseudonym, kind, seed, token_sha256, started_at, finished_at, left_early, client,"
    " practice",
    "trials": "trial, session, position, kind, left_item, right_item, truth, repeats",
}


def write_old(path: Path) -> Path:
    """The same labels in a DuckDB file beside the one at `path`, which goes; as version 2."""
    old = path.with_suffix(".duckdb")
    with closing(sqlite3.connect(path)) as new, duckdb.connect(str(old)) as connection:

        def copy(table: str, sql: str) -> None:
            for row in new.execute(sql).fetchall():
                connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)

        connection.execute(SCHEMA)
        ((secret, made),) = new.execute("SELECT cookie_secret, created_at FROM meta")
        connection.execute("INSERT INTO meta VALUES (2, ?, ?)", [bytes.fromhex(secret), made])
        columns = COLUMNS | {"experiments": _without_checksum(new, "experiments")}
        for table, names in columns.items():
            copy(table, f"SELECT {names} FROM {table}")
        copy("pairs", "SELECT DISTINCT experiment, pair, role, 2 * pair, 2 * pair + 1 FROM items")
        copy(
            "labels",
            "SELECT l.trial, revision, session, event, answer, reason, seconds, hidden_seconds, written_at"
            " FROM labels l JOIN trials USING (trial)",
        )
    path.unlink()
    return old


def _without_checksum(connection: sqlite3.Connection, table: str) -> str:
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    return ", ".join(name for name in names if name != "checksum")


def content(store: LabelStore, experiments: Sequence[str]) -> list[Any]:
    """Everything that a store says of its experiments."""
    found: list[Any] = [store.cookie_secret]
    for name in experiments:
        found += [store.experiment(name), store.items(name), store.standing(name), store.all_events(name)]
        for session in sorted({row.session for row in store.standing(name)}):
            now = store.current(session)
            found += [store.session(session), now, store.shown(session, now.trial) if now.trial else None]
    return found


@pytest.fixture
def kept(store: LabelStore) -> tuple[list[str], list[Any]]:
    """Two experiments with sessions in every state, and what the store says of them."""
    session = begin(store, design(min_seconds=0.5, feedback="none"))
    past_practice(store, session)
    answer(store, session)
    store.undo(session.session)
    now = store.current(session.session)
    store.skip(session.session, str(now.trial), now.revision, "x\x00\u202e'; -- é東")
    finish(store, store.join(session.experiment, "Ada"))
    store.leave(store.join(session.experiment, kind="program").session)
    store.close_experiment((other := begin(store, design(form="pair"))).experiment)
    names = [session.experiment, other.experiment]
    said = content(store, names)
    store.close()
    return names, said


def test_every_label_is_taken_over_once_and_the_old_file_is_kept(
    kept: tuple[list[str], list[Any]], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, said = kept
    old = write_old(path)
    before = old.read_bytes()
    with caplog.at_level(logging.WARNING), closing(LabelStore(path)) as store:
        assert content(store, names) == said
        session = next(row.session for row in store.standing(names[0]) if row.event is None)
        answer(store, store.session(session))
        said = content(store, names)
    assert caplog.messages == [
        "The labels in labels.duckdb are in labels.sqlite now; the old file is kept as labels.duckdb-old."
    ]
    assert (path.parent / "labels.duckdb-old").read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["labels.duckdb-old", "labels.sqlite"]
    assert path.stat().st_mode & 0o077 == 0
    with closing(LabelStore(path)) as store:
        assert content(store, names) == said


def test_a_file_of_the_first_version_is_taken_over_with_what_it_meant(
    kept: tuple[list[str], list[Any]], path: Path
) -> None:
    (name, _), _ = kept
    with duckdb.connect(str(write_old(path))) as connection:
        for column in ("client", "practice"):
            connection.execute(f"ALTER TABLE sessions DROP COLUMN {column}")
        connection.execute("""UPDATE experiments SET design = replace(design, '"min_answered":0.5,', '')""")
        connection.execute("UPDATE meta SET schema_version = 1")
    with closing(LabelStore(path)) as store:
        own = store.experiment(name).design
        assert (own.min_answered, own.min_seconds, own.least_labels) == (0, 0.5, 1)
        (session, *_) = {row.session for row in store.standing(name) if row.event is None and not row.left_early}
        found = store.session(session)
        assert (found.client, found.practice) == (session, None)
        answer(store, found)
        store.leave(session)
        assert store.outlook(name, session).practice == "again"


KILLED = """
import os, sys, duckdb
connection = duckdb.connect(sys.argv[1])
for n in range(6):
    connection.execute("UPDATE sessions SET pseudonym = ? WHERE pseudonym LIKE 'Ada%'", [f"Ada {n} " + 500 * str(n)])
os._exit(9)
"""


def killed(old: Path) -> Path:
    """The log that is left when a server is killed."""
    subprocess.run([sys.executable, "-c", KILLED, str(old)], check=False)
    log = old.with_name(f"{old.name}.wal")
    assert log.stat().st_size > 3000
    return log


def test_what_a_killed_server_left_in_the_old_log_is_taken_over(kept: tuple[list[str], list[Any]], path: Path) -> None:
    log = killed(write_old(path))
    with closing(LabelStore(path)) as store:
        assert any(row.pseudonym.startswith("Ada 5") for row in store.standing(kept[0][0]))
    assert not log.exists()
    assert (path.parent / "labels.duckdb-old.wal").exists()


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("where", ["file", "length"])
def test_a_damaged_old_file_is_refused_and_nothing_is_written(path: Path, where: str) -> None:
    old = write_old(path)
    log = killed(old)
    damaged = bytearray(old.read_bytes() if where == "file" else log.read_bytes())
    if where == "file":
        for at in range(3 * 4096 + 500, len(damaged), 4096):  # behind the headers, wherever the rows are
            damaged[at] ^= 1
        old.write_bytes(damaged)
    else:
        damaged[damaged.index(b"\xff\xff") + 2 + 5] ^= 1  # in the length of the first entry
        log.write_bytes(damaged)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    for _ in range(2):
        with pytest.raises(UserError, match="Nothing in it was changed"):
            LabelStore(path)
        assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.usefixtures("kept")
def test_an_old_file_under_another_name_is_refused_with_what_to_do(path: Path) -> None:
    old = write_old(path).rename(path)
    with pytest.raises(UserError, match=r"with a name that ends in \.duckdb, labels in it are copied"):
        LabelStore(old)


def test_a_setting_that_names_the_old_file_leads_to_the_new_one(tmp_path: Path) -> None:
    assert labels_path(tmp_path / "mine.duckdb", []) == tmp_path / "mine.sqlite"
    assert labels_path(tmp_path / "mine.db", []) == tmp_path / "mine.db"
    assert labels_path(None, [tmp_path]) == tmp_path / "labels" / "labels.sqlite"
