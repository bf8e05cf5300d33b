"""Writes the study's DuckDB file: Parquet files or Arrow tables come in, one file goes out, whole or not at all."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.disk import writing

SCHEMA = Path(__file__).with_name("schema.sql")


class Part(NamedTuple):
    """Rows in a Parquet file, and the columns that are the same in all of them (such as `sae`)."""

    path: Path
    constants: Mapping[str, int | str]


Source: TypeAlias = "pa.Table | Sequence[Part | pa.Table]"
"""A table's rows: in memory, or in Parquet files that are read in the order given."""

Derived: TypeAlias = Mapping[str, Callable[[duckdb.DuckDBPyConnection], pa.Table]]
"""Tables that follow from the others: called with the database when all those are there."""


def write_study(path: Path, tables: Mapping[str, Source], derived: Derived | None = None) -> None:
    """Write a study database to `path`, replacing what is there only once the new file is complete.

    `tables` maps names of schema.sql to rows whose columns bear the schema's names; a table left out stays
    empty. `derived` tables are made when all others are there. A reader with the old file open goes on reading
    the old content. Raises LineupError for a full disk.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path, duckdb.IOException), _removed(partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        _fill(partial, tables, derived or {})
        partial.replace(path)


@contextmanager
def _removed(partial: Path) -> Iterator[None]:
    """No unfinished database, nor what DuckDB keeps beside one, before or afterwards."""
    _remove(partial)
    try:
        yield
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # how DuckDB tells Ctrl-C during a query
            raise KeyboardInterrupt from error
        raise
    finally:
        _remove(partial)


def _remove(database: Path) -> None:
    for ending in ("", ".wal"):
        database.with_name(database.name + ending).unlink(missing_ok=True)
    shutil.rmtree(database.with_name(database.name + ".tmp"), ignore_errors=True)


def _fill(path: Path, tables: Mapping[str, Source], derived: Derived) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET preserve_insertion_order = true")
        connection.execute(SCHEMA.read_text(encoding="utf-8"))
        _insert(connection, "metrics", tables.get("metrics", []))
        for column, *_ in _scores(connection):
            connection.execute(f'ALTER TABLE latents ADD COLUMN "{column}" DOUBLE')
        for name, source in tables.items():
            if name != "metrics":
                _insert(connection, name, source)
        _derive(connection)
        for name, make in derived.items():
            _insert(connection, name, make(connection))
        connection.execute("CHECKPOINT")


def _scores(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str, str, str]]:
    """Columns of `latents` that hold scores, with scorer and protocol."""
    query = "SELECT metric, scorer, explain_from, score_on FROM metrics WHERE scorer IS NOT NULL ORDER BY position"
    return connection.execute(query).fetchall()


_SETTING = "sae, model, hook, name, variant_seed, sae_seed, variant, layer, is_trained"


def _saes(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    rows = connection.execute(f"SELECT {_SETTING} FROM saes JOIN variants USING (variant) ORDER BY sae").fetchall()
    return [dict(zip(_SETTING.split(", "), row, strict=True)) for row in rows]


def statistics_of(
    connection: duckdb.DuckDBPyConnection,
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]], dict[tuple[int, int], dict[int, float]]]:
    """SAEs; by SAE, the numeric columns of its alive latents, nan where there is no value; and by two SAEs, the
    correlation of the first one's latents with their best match in the second.
    """
    described = connection.execute("DESCRIBE latents").fetchall()
    columns = ", ".join(f'CAST("{name}" AS DOUBLE) AS "{name}"' for name, kind, *_ in described if kind != "VARCHAR")
    query = f"SELECT {columns} FROM latents WHERE sae = ? AND state = 'alive' ORDER BY latent"
    saes, found = _saes(connection), {}
    for sae in saes:
        arrays = connection.execute(query, [sae["sae"]]).fetchnumpy()
        found[sae["sae"]] = {name: np.ma.filled(array, np.nan) for name, array in arrays.items()}
    matches: dict[tuple[int, int], dict[int, float]] = {}
    query = "SELECT sae, other_sae, latent, correlation FROM matches WHERE rank = 0"
    for one, other, latent, correlation in connection.execute(query).fetchall():
        matches.setdefault((one, other), {})[latent] = correlation
    return saes, found, matches


def metrics_of(
    connection: duckdb.DuckDBPyConnection,
) -> tuple[list[dict[str, Any]], dict[str, dict[int, float]]]:
    """SAEs and, by metric and SAE, the metrics that have a value."""
    rows = connection.execute("SELECT metric, sae, value FROM sae_metrics WHERE status = 'ok' ORDER BY metric, sae")
    found: dict[str, dict[int, float]] = {}
    for metric, sae, value in rows.fetchall():
        found.setdefault(metric, {})[sae] = value
    return _saes(connection), found


def _insert(connection: duckdb.DuckDBPyConnection, name: str, source: Source) -> None:
    for part in [source] if isinstance(source, pa.Table) else source:
        if isinstance(part, Part):
            _insert_part(connection, name, part)
        elif part.num_rows:
            connection.register("rows", part)
            connection.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM rows')
            connection.unregister("rows")


def _insert_part(connection: duckdb.DuckDBPyConnection, name: str, part: Part) -> None:
    constants = "".join(f', ? AS "{column}"' for column in part.constants)
    query = f'INSERT INTO "{name}" BY NAME SELECT *{constants} FROM read_parquet(?)'
    connection.execute(query, [*part.constants.values(), str(part.path)])


def _derive(connection: duckdb.DuckDBPyConnection) -> None:
    """Fill the columns of `latents` that follow from other tables, where those have rows.

    Which latents qualify is in the rows of the lexical explainer, the first by name, which are always there. Where a
    scorer rated several explanations, that of the language model, the last by name, counts.
    """
    connection.execute("""
        UPDATE latents SET score_state =
            CASE e.status WHEN 'ok' THEN 'scored' WHEN 'failed' THEN 'failed' ELSE e.reason END
        FROM explanations e WHERE e.sae = latents.sae AND e.latent = latents.latent
        AND (e.explainer, e.explain_from) =
            (SELECT min((explainer, explain_from)) FROM explanations)""")
    for column, *protocol in _scores(connection):
        connection.execute(
            f"""
            UPDATE latents SET "{column}" = s.auroc
            FROM (SELECT sae, latent, last(auroc ORDER BY explainer) AS auroc FROM scores
                  WHERE scorer = ? AND explain_from = ? AND score_on = ? AND status = 'ok' AND NOT shuffled
                  GROUP BY ALL) s
            WHERE s.sae = latents.sae AND s.latent = latents.latent""",
            protocol,
        )
    connection.execute("""
        UPDATE latents SET best_match_correlation = m.correlation
        FROM (SELECT sae, latent, max(correlation) AS correlation FROM matches GROUP BY ALL) m
        WHERE m.sae = latents.sae AND m.latent = latents.latent""")
