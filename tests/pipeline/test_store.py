"""The study's database is written whole or not at all."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from pipeline.autointerp import score_metrics
from pipeline.config import AutointerpConfig
from pipeline.database import Part, write_study
from pipeline.measures.metrics import metrics_table


def latents(count: int) -> pa.Table:
    return pa.table(
        {
            "latent": range(count),
            "state": ["alive"] * count,
            "firings": [1] * count,
            "density": [0.1] * count,
            "decoder_norm": [1.0] * count,
        }
    )


def rows(path: Path, sql: str) -> list[tuple]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def test_parts_get_their_constants_and_scores_become_columns(tmp_path: Path) -> None:
    pq.write_table(latents(2), tmp_path / "latents.parquet")
    texts = {
        "explainer": ["lexical"] * 2,
        "explain_from": ["random"] * 2,
        "text": ["x", None],
        "status": ["ok", "not_applicable"],
        "reason": ["", "dead"],
    }
    pq.write_table(pa.table({"latent": [0, 1], **texts}), tmp_path / "explanations.parquet")
    verdict = {"auroc": [0.7], "balanced_accuracy": [0.6], "positives": [5], "negatives": [5], "status": ["ok"]}
    scores = pa.table(
        {"sae": [4], "latent": [0], "explainer": ["lexical"], "scorer": ["fuzzing"], "reason": [""], **verdict}
        | {"explain_from": ["random"], "score_on": ["quantiles"], "split_by": ["window"], "examples": [10]}
    )
    shuffled = scores.set_column(2, "explainer", pa.array(["llm"])).append_column("shuffled", pa.array([True]))
    floor = shuffled.set_column(shuffled.schema.get_field_index("auroc"), "auroc", pa.array([0.4]))
    part = [Part(tmp_path / "latents.parquet", {"sae": sae}) for sae in (4, 5)]
    explanations = [Part(tmp_path / "explanations.parquet", {"sae": 4})]
    config = AutointerpConfig(scorers=("fuzzing",), explain_from="random")
    tables = {"latents": part, "explanations": explanations, "scores": [scores, floor]}
    tables["metrics"] = metrics_table(score_metrics(config))
    write_study(tmp_path / "s.duckdb", tables)
    column = "fuzzing_random_to_quantiles_auroc"
    found = rows(tmp_path / "s.duckdb", f"SELECT sae, latent, score_state, {column} FROM latents ORDER BY ALL")
    assert found == [(4, 0, "scored", 0.7), (4, 1, "dead", None), (5, 0, "pending", None), (5, 1, "pending", None)]


def test_a_failed_explanation_is_a_state_and_its_reason_stays_with_it(tmp_path: Path) -> None:
    rows_ = {
        "sae": [1],
        "latent": [0],
        "explainer": ["x"],
        "explain_from": ["random"],
        "status": ["failed"],
        "reason": ["HTTP 500"],
    }
    table = latents(1).append_column("sae", pa.array([1]))
    write_study(tmp_path / "s.duckdb", {"latents": table, "explanations": pa.table(rows_)})
    assert rows(tmp_path / "s.duckdb", "SELECT score_state FROM latents") == [("failed",)]


def test_a_write_that_fails_leaves_the_old_database(tmp_path: Path) -> None:
    database = tmp_path / "s.duckdb"
    write_study(database, {"latents": latents(3).append_column("sae", pa.array([0] * 3))})
    with pytest.raises(UserError, match="Cannot write"):
        write_study(database, {"latents": [Part(tmp_path / "missing.parquet", {"sae": 0})]})
    assert rows(database, "SELECT count(*) FROM latents") == [(3,)]
    assert [path.name for path in tmp_path.iterdir()] == ["s.duckdb"]


def three() -> dict[str, pa.Table]:
    return {"latents": latents(3).append_column("sae", pa.array([0] * 3))}


FULL: dict[str, Callable[[str], Exception]] = {
    "IOException": lambda words: duckdb.IOException(f'IO Error: Could not write file "s.duckdb.partial": {words}'),
    "TransactionException": lambda words: duckdb.TransactionException(
        f'TransactionContext Error: Failed to commit: Could not write file "s.duckdb.partial.wal": {words}'
    ),
    "FatalException": lambda words: duckdb.FatalException(
        f"FATAL Error: Failed to create checkpoint because of error: Could not write file: {words}"
    ),
}
"""What DuckDB raises on a full disk, by how full it is."""


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_database_alone(kind: str, tmp_path: Path) -> None:
    def full(_: duckdb.DuckDBPyConnection) -> pa.Table:
        for ending in ("", ".wal"):
            (tmp_path / f"s.duckdb.partial{ending}").touch()
        (tmp_path / "s.duckdb.partial.tmp").mkdir()
        raise FULL[kind]("No space left on device")

    write_study(tmp_path / "s.duckdb", three())
    with pytest.raises(UserError, match=r"^Cannot write '.*s\.duckdb': No space left on device\. .* make room, then"):
        write_study(tmp_path / "s.duckdb", three(), {"tells": full})
    assert rows(tmp_path / "s.duckdb", "SELECT count(*) FROM latents") == [(3,)]
    assert [path.name for path in tmp_path.iterdir()] == ["s.duckdb"]


def test_an_error_of_duckdbs_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(duckdb.CatalogException):
        write_study(tmp_path / "s.duckdb", {"no_such_table": latents(1)})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_beside_its_database_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    for ending in ("", ".wal"):
        (tmp_path / f"s.duckdb.partial{ending}").write_bytes(b"half")
    write_study(tmp_path / "s.duckdb", three())
    assert rows(tmp_path / "s.duckdb", "SELECT count(*) FROM latents") == [(3,)]
    assert [path.name for path in tmp_path.iterdir()] == ["s.duckdb"]


def press(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Ctrl-C while one query after the other runs: it comes as a KeyboardInterrupt, or as DuckDB's own error."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    while True:
        connection.execute("SELECT sum(range % 7) FROM range(2_000_000)")


def told(_: duckdb.DuckDBPyConnection) -> pa.Table:
    """What DuckDB makes of it in the midst of a query, most of the time."""
    raise RuntimeError("Query interrupted")


@pytest.mark.parametrize("interrupted", [press, told])
def test_ctrl_c_is_ctrl_c_in_the_midst_of_a_query_too(
    interrupted: Callable[[duckdb.DuckDBPyConnection], pa.Table], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_study(tmp_path / "s.duckdb", three(), {"tells": interrupted})
    assert list(tmp_path.iterdir()) == []
