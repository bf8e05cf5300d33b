"""How often the database is written, which metrics a study can have, and how many SAEs it plans."""

import time
from pathlib import Path

import pytest

from pipeline.artefacts import Artefacts
from pipeline.config import Study
from pipeline.database import FEWEST_SECONDS, MOST_SECONDS, Finished, metrics_of_study
from pipeline.measures.metrics import METRICS


def finished(folder: Path, **changes: object) -> Finished:
    return Finished(Study.model_validate({"name": "mine", **changes}), Artefacts(folder, "here"))


def test_writing_takes_at_most_a_fifth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    state = finished(tmp_path)
    assert state.due()  # the first latents are shown at once
    now = 110.0
    state.written(started=100.0)
    now = 159.0
    assert not state.due()
    now = 160.0
    assert state.due()
    state.written(started=160.0)
    now = 160.0 + FEWEST_SECONDS - 0.1
    assert not state.due()


def test_a_pause_while_it_is_written_does_not_put_the_next_time_off_for_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 3600.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    state = finished(tmp_path)
    state.written(started=0.0)
    now += MOST_SECONDS
    assert state.due()


def test_scores_are_wanted_when_their_scorer_is_asked(tmp_path: Path) -> None:
    asked = {"scorers": ["detection", "llm_fuzzing_hard"], "score_on": ["random", "quantiles"]}
    metrics = metrics_of_study(finished(tmp_path, autointerp=asked).study)
    scores = [metric.name for metric in metrics if metric.scorer]
    names = ("quantiles", "quantiles_to_random")
    assert scores == [f"{scorer}_{name}_auroc" for name in names for scorer in ("detection", "llm_fuzzing_hard")]
    assert [metric for metric in metrics if not metric.scorer] == list(METRICS)


def test_trained_variants_are_not_drawn_twice(tmp_path: Path) -> None:
    study = {"variants": ["trained", "control"], "layers": [1, 3], "variant_seeds": 3, "sae_seeds": 2}
    assert finished(tmp_path, **study).planned == (1 + 3) * 2 * 2
    two = {"models": ["folder:a", {"source": "folder:b", "layers": [1]}], "hooks": ["mlp_out", "attn_out"]}
    assert finished(tmp_path, **study, **two).planned == (1 + 3) * 2 * (2 + 1) * 2
