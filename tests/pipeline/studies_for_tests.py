"""A study file of a toy model and toy text, and the command line that runs it."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import yaml

from pipeline.hardware import VARIABLE
from tests.pipeline.toy import save_toy_model, write_toy_corpus

ROOT = Path(__file__).parents[2]

PRECISION = os.environ.get(VARIABLE) or "float32"
"""Of the tests' studies: the same on every processor, and bfloat16 where LINEUP_PRECISION asks for it."""


CURVE = {"latents": 40, "examples": [20], "windows": [16], "explain_from": "quantiles", "score_on": "quantiles"}
"""A curve of few points."""


def toy_study(folder: Path, **changes: object) -> Path:
    """Write model, text and study file to the folder; gives the study file."""
    save_toy_model(folder / "model")
    write_toy_corpus(folder / "corpus.jsonl")
    study = {
        "name": "toy",
        "precision": PRECISION,
        "model": {"source": f"folder:{folder / 'model'}"},
        "corpus": {"source": f"jsonl:{folder / 'corpus.jsonl'}", "tokens": 12_800, "context_length": 32},
        "variants": ["trained", "rerandomized_incl_embeddings", "control"],
        "layers": [0, 2],
        "sae": {"d_sae": 96, "k": 4, "batch_tokens": 256, "learning_rate": 3e-3},
        "collect": {"window": 16, "entropy_examples": 20},
        "autointerp": {"specifications": CURVE},
        "evaluate_ce_tokens": 256,
    }
    path = folder / "toy.yaml"
    changed = {key: value for key, value in (study | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    return path


def query(database: Path, sql: str, *values: object) -> list[tuple]:
    """All rows of a finished study's database."""
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(sql, values).fetchall()


def differing(one: Path, other: Path) -> list[str]:
    """Tables that do not hold the same rows in two databases; but for `timings`, which says how long a run took."""
    found = []
    with duckdb.connect(":memory:") as connection:
        for name, path in (("one", one), ("other", other)):
            connection.execute(f"ATTACH '{path}' AS {name} (READ_ONLY)")
        tables = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        for table in sorted(tables - {"timings"}):
            for a, b in (("one", "other"), ("other", "one")):
                rows = f"SELECT count(*) FROM (FROM {a}.{table} EXCEPT ALL FROM {b}.{table})"
                if connection.execute(rows).fetchone() != (0,):
                    found.append(table)
    return found


def command(study: Path, runs: Path, *more: str) -> list[str]:
    """`lineup run STUDY`, as a process of its own."""
    return [sys.executable, "-m", "lineup", "run", str(study), "--runs", str(runs), *more]


def run(study: Path, runs: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(study, runs, *more), cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )
