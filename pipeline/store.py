"""Writes the study's DuckDB file: Parquet files or Arrow tables come in, one file goes out, whole or not at all."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import LineupError

SCHEMA = Path(__file__).with_name("schema.sql")


class Part(NamedTuple):
    """Rows in a Parquet file, and the columns that are the same in all of them (such as `sae`)."""

    path: Path
    constants: Mapping[str, int | str]


Source: TypeAlias = "pa.Table | Sequence[Part]"
"""A table's rows: in memory, or in Parquet files that are read in the order given."""

SCORE_COLUMNS = ("detection", "fuzzing", "detection_quantiles", "fuzzing_quantiles")
"""Scorers whose scores are columns of `latents`."""


Tell: TypeAlias = Callable[[Sequence[Mapping[str, Any]], Mapping[int, Mapping[str, Any]]], pa.Table]
"""From SAEs and, by SAE, the statistics of its alive latents to the table `tells`: see `tell.tell_table`."""


def write_study(path: Path, tables: Mapping[str, Source], tell: Tell | None = None) -> None:
    """Write a study database to `path`, replacing what is there only once the new file is complete.

    `tables` maps names of schema.sql to rows whose columns bear the schema's names; a table left out stays
    empty. `tell` is called when all else is there, and fills `tells`. A reader with the old file open goes on reading
    the old content. Raises LineupError for a full disk.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fill(partial, tables, tell)
        partial.replace(path)
    except (duckdb.IOException, OSError) as error:
        partial.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise LineupError(f"Cannot write '{path}': {reason}. Free some disk space and run again.") from error


def _fill(path: Path, tables: Mapping[str, Source], tell: Tell | None) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET preserve_insertion_order = true")
        connection.execute(SCHEMA.read_text(encoding="utf-8"))
        for name, source in tables.items():
            _insert(connection, name, source)
        _derive(connection)
        if tell is not None:
            _insert(connection, "tells", tell(*_statistics(connection)))
        connection.execute("CHECKPOINT")


def _statistics(connection: duckdb.DuckDBPyConnection) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """SAEs and, by SAE, the numeric columns of its alive latents, nan where there is no value."""
    rows = connection.execute("SELECT sae, layer, is_trained FROM saes JOIN variants USING (variant) ORDER BY sae")
    saes = [dict(zip(("sae", "layer", "is_trained"), row, strict=True)) for row in rows.fetchall()]
    described = connection.execute("DESCRIBE latents").fetchall()
    columns = ", ".join(f'CAST("{name}" AS DOUBLE) AS "{name}"' for name, kind, *_ in described if kind != "VARCHAR")
    query = f"SELECT {columns} FROM latents WHERE sae = ? AND state = 'alive' ORDER BY latent"
    found = {}
    for sae in saes:
        arrays = connection.execute(query, [sae["sae"]]).fetchnumpy()
        found[sae["sae"]] = {name: np.ma.filled(array, np.nan) for name, array in arrays.items()}
    return saes, found


def _insert(connection: duckdb.DuckDBPyConnection, name: str, source: Source) -> None:
    if isinstance(source, pa.Table):
        if source.num_rows:
            connection.register("rows", source)
            connection.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM rows')
            connection.unregister("rows")
        return
    for part in source:
        constants = "".join(f', ? AS "{column}"' for column in part.constants)
        query = f'INSERT INTO "{name}" BY NAME SELECT *{constants} FROM read_parquet(?)'
        connection.execute(query, [*part.constants.values(), str(part.path)])


def _derive(connection: duckdb.DuckDBPyConnection) -> None:
    """Fill the columns of `latents` that follow from other tables, where those have rows."""
    connection.execute("""
        UPDATE latents SET score_state =
            CASE e.status WHEN 'ok' THEN 'scored' WHEN 'failed' THEN 'failed' ELSE e.reason END
        FROM explanations e WHERE e.sae = latents.sae AND e.latent = latents.latent""")
    for scorer in SCORE_COLUMNS:
        connection.execute(
            f"""
            UPDATE latents SET {scorer}_auroc = s.auroc, {scorer}_balanced_accuracy = s.balanced_accuracy
            FROM scores s
            WHERE s.sae = latents.sae AND s.latent = latents.latent AND s.scorer = ? AND s.status = 'ok'""",
            [scorer],
        )
    connection.execute("""
        UPDATE latents SET best_match_correlation = m.correlation
        FROM (SELECT sae, latent, max(correlation) AS correlation FROM matches GROUP BY ALL) m
        WHERE m.sae = latents.sae AND m.latent = latents.latent""")
