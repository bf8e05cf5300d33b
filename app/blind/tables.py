"""All SQL of the file of labels. Rows of `labels` are only ever added."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import duckdb

Connection: TypeAlias = duckdb.DuckDBPyConnection
Row: TypeAlias = dict[str, Any]


def now() -> datetime:
    """The time as the file keeps it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def _rows(connection: Connection, sql: str, *parameters: object) -> list[Row]:
    result = connection.execute(sql, parameters)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _row(connection: Connection, sql: str, *parameters: object) -> Row | None:
    found = _rows(connection, sql, *parameters)
    return found[0] if found else None


def _insert(connection: Connection, table: str, values: Mapping[str, object]) -> None:
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))


def _insert_all(connection: Connection, table: str, types: Mapping[str, str], rows: Sequence[Row]) -> None:
    # One statement for all rows: DuckDB takes as long for one row as for a thousand.
    columns = ", ".join(f"unnest(?::{kind}[])" for kind in types.values())
    values = [[row[name] for row in rows] for name in types]
    connection.execute(f"INSERT INTO {table} ({', '.join(types)}) SELECT {columns}", values)


def create(connection: Connection, version: int, cookie_secret: bytes) -> None:
    """Make the tables in an empty file."""
    connection.execute((Path(__file__).parent / "schema.sql").read_text(encoding="utf-8"))
    _insert(connection, "meta", {"schema_version": version, "cookie_secret": cookie_secret, "created_at": now()})


def migrate(connection: Connection) -> None:
    """From version 1, in which nothing tied sessions together: each is a browser's, or a program's, own."""
    connection.execute("ALTER TABLE sessions ADD COLUMN client VARCHAR")
    connection.execute("ALTER TABLE sessions ADD COLUMN practice VARCHAR")
    connection.execute("UPDATE sessions SET client = session")
    connection.execute("UPDATE meta SET schema_version = 2")


def meta(connection: Connection) -> tuple[int, bytes]:
    """Version of the schema, secret of the cookies."""
    row = _rows(connection, "SELECT schema_version, cookie_secret FROM meta")[0]
    return row["schema_version"], row["cookie_secret"]


def read_all(connection: Connection) -> None:
    """Read every value of every table; raises duckdb.Error for a file that is damaged."""
    for (table,) in connection.execute("SHOW TABLES").fetchall():
        connection.execute(f"SELECT bit_xor(hash(t)) FROM {table} t").fetchall()


def log_begun(connection: Connection) -> bool:
    """Whether anything of a write-ahead log was read when the file was opened."""
    size: str = _rows(connection, "PRAGMA database_size")[0]["wal_size"]
    return size != "0 bytes"


def insert_experiment(connection: Connection, values: Row, items: Sequence[Row], pairs: Sequence[Row]) -> None:
    """Add an experiment with its latents and pairs."""
    _insert(connection, "experiments", values)
    types = {"experiment": "VARCHAR", "item": "INTEGER", "sae": "INTEGER", "variant": "VARCHAR", "layer": "INTEGER"}
    types |= {"latent": "INTEGER", "density": "DOUBLE", "statistics": "VARCHAR", "evidence": "VARCHAR"}
    _insert_all(connection, "items", types | {"gold_evidence": "VARCHAR"}, items)
    types = {"experiment": "VARCHAR", "pair": "INTEGER", "role": "VARCHAR"}
    _insert_all(connection, "pairs", types | {"trained_item": "INTEGER", "random_item": "INTEGER"}, pairs)


def experiment(connection: Connection, column: str, value: str) -> Row | None:
    """The experiment with this id, invitation or hash of the organiser's token."""
    assert column in ("experiment", "invite", "organiser_sha256")
    return _row(connection, f"SELECT * FROM experiments WHERE {column} = ?", value)


def freeze(connection: Connection, experiment: str) -> None:
    """Note the first answer that counts, unless it is noted."""
    sql = "UPDATE experiments SET frozen_at = ? WHERE experiment = ? AND frozen_at IS NULL"
    connection.execute(sql, [now(), experiment])


def close(connection: Connection, experiment: str) -> None:
    """Note the end, unless it is noted."""
    sql = "UPDATE experiments SET closed_at = ? WHERE experiment = ? AND closed_at IS NULL"
    connection.execute(sql, [now(), experiment])


_PAIRED = (
    "(SELECT experiment, pair, role, trained_item AS item, random_item FROM pairs UNION ALL"
    " SELECT experiment, pair, role, random_item AS item, random_item FROM pairs)"
)


def items(connection: Connection, experiment: str) -> list[Row]:
    """The experiment's latents with their pairs, without evidence; of a pair, the trained one first."""
    return _rows(
        connection,
        f"""
        SELECT i.item, p.pair, p.role, i.item = p.random_item AS is_random, i.sae, i.variant, i.layer, i.latent,
               i.density, i.statistics
        FROM items i JOIN {_PAIRED} p USING (experiment, item) WHERE experiment = ? ORDER BY pair, is_random
        """,
        experiment,
    )


def evidence(connection: Connection, experiment: str, items: Sequence[int]) -> dict[int, Row]:
    """By item: `evidence` and `gold_evidence`, as JSON."""
    sql = "SELECT item, evidence, gold_evidence FROM items WHERE experiment = ? AND list_contains(?::INTEGER[], item)"
    return {row["item"]: row for row in _rows(connection, sql, experiment, list(items))}


def insert_session(connection: Connection, values: Row, trials: Sequence[Row]) -> None:
    """Add a session with its trials."""
    _insert(connection, "sessions", values)
    types = {"trial": "VARCHAR", "session": "VARCHAR", "position": "INTEGER", "kind": "VARCHAR"}
    types |= {"left_item": "INTEGER", "right_item": "INTEGER", "truth": "VARCHAR", "repeats": "INTEGER"}
    _insert_all(connection, "trials", types, trials)


def session(connection: Connection, column: str, value: str) -> Row | None:
    """The session with this token, or with this hash of a bearer token, and when its experiment froze and closed."""
    assert column in ("session", "token_sha256")
    return _row(
        connection,
        "SELECT s.*, e.frozen_at, e.closed_at FROM sessions s JOIN experiments e USING (experiment)"
        f" WHERE s.{column} = ?",
        value,
    )


def sessions(connection: Connection, experiment: str) -> list[Row]:
    """The experiment's sessions in the order in which they were joined."""
    return _rows(connection, "SELECT * FROM sessions WHERE experiment = ? ORDER BY started_at, session", experiment)


def progress(connection: Connection, experiment: str) -> dict[str, Row]:
    """By session: how many trials it has (`total`) and how many have a standing answer (`done`)."""
    found = _rows(
        connection,
        """
        SELECT session, count(*) AS total, count(*) FILTER (event IN ('label', 'skip')) AS done
        FROM trials t JOIN sessions s USING (session)
        LEFT JOIN (SELECT trial, arg_max(event, revision) AS event FROM labels GROUP BY trial) USING (trial)
        WHERE s.experiment = ? GROUP BY session
        """,
        experiment,
    )
    return {row["session"]: row for row in found}


def finish(connection: Connection, session: str, left_early: bool) -> datetime:
    """Note that a session is over, and since when."""
    at = now()
    sql = "UPDATE sessions SET finished_at = ?, left_early = ? WHERE session = ?"
    connection.execute(sql, [at, left_early, session])
    return at


def trials(connection: Connection, session: str) -> list[Row]:
    """A session's trials in order."""
    # Sorted here: DuckDB takes a millisecond more to sort a few rows.
    return sorted(
        _rows(connection, "SELECT trial, position, kind, truth FROM trials WHERE session = ?", session),
        key=lambda row: row["position"],
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
               (SELECT count(*) FROM labels l JOIN trials t USING (trial)
                WHERE l.session = s.session AND t.kind <> 'practice') AS answers
        FROM sessions s JOIN experiments e USING (experiment) WHERE s.client = ? ORDER BY s.started_at, s.session
        """,
        client,
    )


def answered_latents(connection: Connection, client: str) -> list[Row]:
    """Experiment, variant, layer and index of every latent that a client has given an answer to, practice too."""
    return _rows(
        connection,
        """
        SELECT DISTINCT s.experiment, i.variant, i.layer, i.latent
        FROM sessions s JOIN trials t USING (session) JOIN labels l USING (trial)
        JOIN items i ON i.experiment = s.experiment AND (i.item = t.left_item OR i.item = t.right_item)
        WHERE s.client = ?
        """,
        client,
    )


def revisions(connection: Connection, session: str) -> list[Row]:
    """A session's part of the log, in order."""
    found = _rows(connection, "SELECT trial, revision, event FROM labels WHERE session = ?", session)
    return sorted(found, key=lambda row: row["revision"])


def label(connection: Connection, trial: str, revision: int) -> Row:
    """A row of the log that is there."""
    return _rows(connection, "SELECT * FROM labels WHERE trial = ? AND revision = ?", trial, revision)[0]


def insert_label(connection: Connection, values: Row) -> None:
    """Add a row to the log."""
    _insert(connection, "labels", {**values, "written_at": now()})


def standing(connection: Connection, experiment: str) -> list[Row]:
    """Every trial of an experiment with the last row of its log."""
    return _rows(
        connection,
        f"""
        WITH last AS (SELECT * FROM labels WHERE session IN (SELECT session FROM sessions WHERE experiment = ?)
                      QUALIFY row_number() OVER (PARTITION BY trial ORDER BY revision DESC) = 1)
        SELECT s.session, s.pseudonym, s.kind AS rater, s.practice, s.started_at, s.finished_at, s.left_early,
               t.position, t.kind, t.truth, t.repeats, p.pair,
               t.left_item AS "left", t.right_item AS "right", r.variant, r.layer,
               CASE WHEN t.right_item IS NULL THEN a.density ELSE sqrt(a.density * b.density) END AS density,
               last.event, last.answer, last.reason, last.seconds, last.hidden_seconds,
               coalesce(last.revision, 0) AS revisions
        FROM sessions s JOIN trials t USING (session)
        JOIN {_PAIRED} p ON p.experiment = s.experiment AND p.item = t.left_item
        JOIN items r ON r.experiment = s.experiment AND r.item = p.random_item
        JOIN items a ON a.experiment = s.experiment AND a.item = t.left_item
        LEFT JOIN items b ON b.experiment = s.experiment AND b.item = t.right_item
        LEFT JOIN last ON last.trial = t.trial
        WHERE s.experiment = ? ORDER BY s.started_at, s.session, t.position
        """,
        experiment,
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
