"""The study's database is written whole or not at all."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.autointerp import score_metrics
from pipeline.config import AutointerpConfig
from pipeline.errors import LineupError
from pipeline.measures.metrics import metrics_table
from pipeline.store import Part, write_study


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
    with pytest.raises(LineupError, match="Cannot write"):
        write_study(database, {"latents": [Part(tmp_path / "missing.parquet", {"sae": 0})]})
    assert rows(database, "SELECT count(*) FROM latents") == [(3,)]
    assert [path.name for path in tmp_path.iterdir()] == ["s.duckdb"]
