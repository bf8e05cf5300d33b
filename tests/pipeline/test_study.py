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
from sae_lens.saes.topk_sae import TopK
from transformers import AutoModelForCausalLM

from pipeline.activations import SEQUENCES_IN_BATCH
from pipeline.hardware import Compute
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
        "specifications",
        "specification_curves",
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stored_activations_are_those_of_saelens_sae_on_the_models_own_residual_stream(
    precision: str, in_both_precisions: dict[str, Path], tmp_path: Path
) -> None:
    """The model runs in the study's precision, the SAE in float32: the study may have picked other latents."""
    database, first = in_both_precisions[precision], "variant = 'trained' AND layer = 0"
    model = AutoModelForCausalLM.from_pretrained(toy_study(tmp_path).parent / "model")
    tokens = torch.tensor([row[0] for row in query(database, "SELECT tokens FROM sequences ORDER BY sequence")])
    with torch.inference_mode(), Compute("cpu", precision == "bfloat16").autocast():
        parts = [model(part, output_hidden_states=True).hidden_states[1] for part in tokens.split(SEQUENCES_IN_BATCH)]
    ((path,),) = query(database, f"SELECT path FROM saes WHERE {first}")
    sae, residual = SAE.load_from_disk(database.parent / path), torch.cat(parts).float()
    picked = sae.encode(residual).detach()
    sae.activation_fn = TopK(sae.cfg.d_sae)
    acts = sae.encode(residual).detach()
    contexts = query(
        database,
        f"""SELECT latent, sequence, start, length, positions, activations FROM contexts JOIN saes USING (sae)
            WHERE {first} AND rank = 0 LIMIT 60""",
    )
    others = []
    for latent, sequence, start, length, positions, activations in contexts:
        at, stored = torch.arange(start, start + length), torch.zeros(length)
        stored[list(positions)] = torch.tensor(activations)
        active = stored > 0
        assert torch.allclose(acts[sequence, at, latent][active], stored[active], atol=1e-3)
        others.append((picked[sequence, at, latent] > 0) != active)
        others[-1][at == 0] = False  # the first position is dropped
    assert len(others) == 60
    assert torch.cat(others).float().mean() <= (0.02 if precision == "bfloat16" else 0)


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


def test_running_it_again_makes_nothing(finished: Path, study_file: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*.parquet")}
    assert run(study_file, finished.parent).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*.parquet")}


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "activations": lambda folder: any(folder.glob("activations-*.partial/*.safetensors")),
    "sae": lambda folder: any(folder.glob("sae-*.partial")),
    "codes": lambda folder: any(folder.glob("codes-*.partial/codes.safetensors")),
    "database": lambda folder: any(folder.parent.glob("*.duckdb.partial")),
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
    finished: Path, study_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs = tmp_path_factory.mktemp("disturbed")
    for moment in MOMENTS.values():
        kill_at(moment, study_file, runs)
    outcome = run(study_file, runs)
    assert outcome.returncode == 0, outcome.stderr
    assert differing(finished, runs / "toy.duckdb") == []
