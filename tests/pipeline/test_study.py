"""A whole study of a toy model from the command line: what it writes, and that killing it loses nothing."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM

from tests.pipeline.studies_for_tests import ROOT, command, differing, query, run, toy_study

TABLES = [
    *("study", "provenance", "models", "variants", "tensors", "articles", "sequences", "vocabulary", "metrics", "saes"),
    *(
        "sae_metrics",
        "latents",
        "contexts",
        "histograms",
        "logit_effects",
        "explanations",
        "scores",
        "matches",
        "tells",
        "differences",
    ),
]
"""All tables but `timings`, which says how long this run took."""


def test_the_database_is_complete(finished: Path) -> None:
    assert query(finished, "SELECT complete, planned_saes FROM study") == [(True, 6)]
    counts = {name: query(finished, f"SELECT count(*) FROM {name}")[0][0] for name in [*TABLES, "timings"]}
    assert counts["saes"] == 6
    assert counts["latents"] == counts["explanations"] == 6 * 96
    assert all(counts.values()), counts


def test_schema_and_tables_are_one_list(finished: Path) -> None:
    assert {row[0] for row in query(finished, "SELECT table_name FROM duckdb_tables()")} == {*TABLES, "timings"}


def test_every_metric_is_there_or_says_why_not(finished: Path) -> None:
    missing = query(
        finished,
        """SELECT s.sae, m.metric FROM saes s, metrics m WHERE m.level = 'sae'
           AND NOT EXISTS (SELECT 1 FROM sae_metrics v WHERE v.sae = s.sae AND v.metric = m.metric)""",
    )
    assert missing == []
    assert query(finished, "SELECT count(*) FROM sae_metrics WHERE (value IS NULL) <> (status <> 'ok')") == [(0,)]
    assert query(finished, "SELECT count(*) FROM sae_metrics WHERE status <> 'ok' AND reason = ''") == [(0,)]
    control = query(
        finished,
        """SELECT DISTINCT status FROM sae_metrics JOIN saes USING (sae)
           WHERE variant = 'control' AND metric = 'ce_loss_recovered'""",
    )
    assert control == [("not_applicable",)]


def test_every_latent_statistic_is_a_column(finished: Path) -> None:
    columns = {
        row[0] for row in query(finished, "SELECT column_name FROM duckdb_columns() WHERE table_name = 'latents'")
    }
    assert {row[0] for row in query(finished, "SELECT metric FROM metrics WHERE level = 'latent'")} <= columns


def test_stored_activations_are_those_of_saelens_sae_on_the_models_own_residual_stream(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy_study(tmp_path_factory.mktemp("again")).parent / "model")
    ((path,),) = query(finished, "SELECT path FROM saes WHERE variant = 'trained' AND layer = 0")
    sae = SAE.load_from_disk(finished.parent / path)
    contexts = query(
        finished,
        """SELECT c.latent, c.start, c.length, c.positions, c.activations, s.tokens
           FROM contexts c JOIN sequences s USING (sequence) JOIN saes USING (sae)
           WHERE variant = 'trained' AND layer = 0 AND rank = 0 LIMIT 60""",
    )
    for latent, start, length, positions, activations, tokens in contexts:
        with torch.inference_mode():
            residual = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[1][0]
            acts = sae.encode(residual)[:, latent].clone()
            acts[0] = 0  # the first position is dropped
        expected = torch.zeros(length)
        expected[list(positions)] = torch.tensor(activations)
        assert torch.allclose(acts[start : start + length], expected, atol=1e-3)


def test_the_control_sees_noise_and_the_trained_model_sees_text(finished: Path) -> None:
    found = dict(
        query(
            finished,
            """SELECT variant, value FROM sae_metrics JOIN saes USING (sae)
               WHERE metric = 'token_identity_r2' AND layer = 0""",
        )
    )
    assert found["control"] < 0.05
    assert found["trained"] > found["control"] + 0.15


def test_running_it_again_makes_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*.parquet")}
    study = next(path for path in finished.parent.parent.rglob("toy.yaml"))
    assert run(study, finished.parent).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*.parquet")}


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "forward": lambda folder: any(folder.glob("activations-*.partial/*.safetensors")),
    "train": lambda folder: any(folder.glob("sae-*.partial")),
    "collect": lambda folder: any(folder.glob("latents-*.partial/codes.safetensors")),
    "publish": lambda folder: any(folder.parent.glob("*.duckdb.partial")),
    "second variant": lambda folder: len(list(folder.glob("scores-*"))) > 2,
}


def kill_at(moment: Callable[[Path], bool], study: Path, runs: Path) -> None:
    """Start the study and kill it, with all its threads, as soon as the moment is there."""
    process = subprocess.Popen(command(study, runs), cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 200
    while not moment(runs / "toy"):
        assert process.poll() is None, "the study ended before the moment came"
        assert time.monotonic() < deadline, "the moment did not come"
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_study_that_is_killed_in_every_stage_ends_with_the_same_content(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = next(path for path in finished.parent.parent.rglob("toy.yaml"))
    runs = tmp_path_factory.mktemp("disturbed")
    for moment in MOMENTS.values():
        kill_at(moment, study, runs)
    outcome = run(study, runs)
    assert outcome.returncode == 0, outcome.stderr
    assert differing(finished, runs / "toy.duckdb") == []
