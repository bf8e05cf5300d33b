"""A study that asks a language model, from end to end, and what becomes of prompts that it did not answer."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Study, load_study
from pipeline.study import run_study
from tests.pipeline.llm_server import Behaviour, Model, good, running, status
from tests.pipeline.studies_for_tests import query, toy_study

KEY = "sk-secret-of-this-test"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setenv("LINEUP_LLM_KEY", KEY)
    with running() as server:
        server.usual = good(lambda excerpt: 0.8 if "<<" in excerpt else 0.3)
        yield server


def asking(model: Model, folder: Path) -> Study:
    """One SAE of each of two variants, 3 of whose latents a language model explains and scores."""
    llm = {"endpoint": model.address, "model": "toy", "attempts": 1, "explain_examples": 10}
    autointerp = {
        "explainers": ["lexical", "llm"],
        "scorers": ["detection", "llm_detection", "llm_fuzzing"],
        "latents": 3,
        "examples": 20,
        "specifications": {"latents": 0},
        "llm": llm,
    }
    changes: dict[str, Any] = {"layers": [0], "variants": ["trained", "control"], "autointerp": autointerp}
    return load_study(toy_study(folder, **changes))


def sometimes(every: int, otherwise: Behaviour) -> Behaviour:
    """The server is overloaded at every so many requests."""
    lock, count = threading.Lock(), 0

    def behave(handler: Any, body: Any) -> None:
        nonlocal count
        with lock:
            count += 1
            now = count
        (status(500) if now > 10 and now % every == 0 else otherwise)(handler, body)

    return behave


def statuses(database: Path) -> dict[tuple[str, str], int]:
    rows = query(
        database,
        """SELECT 'explanation', status, count(*) FROM explanations WHERE explainer = 'llm' GROUP BY ALL
           UNION ALL
           SELECT scorer, status, count(*) FROM scores WHERE scorer LIKE 'llm%' GROUP BY ALL""",
    )
    return {(what, how): count for what, how, count in rows}


def test_a_study_asks_explains_and_scores_and_the_key_is_nowhere(model: Model, tmp_path: Path) -> None:
    database = run_study(asking(model, tmp_path), tmp_path / "runs", io.StringIO())
    found = statuses(database)
    assert found["explanation", "ok"] == 6
    # of two explainers each, and with another latent's explanation
    assert found["llm_detection", "ok"] == found["llm_fuzzing", "ok"] == 6 * 2 * 2
    assert not any(how == "failed" for _, how in found)
    for path in tmp_path.rglob("*"):
        assert not (path.is_file() and KEY.encode() in path.read_bytes()), path


def test_what_was_not_answered_is_asked_again_by_the_next_run_and_nothing_else(model: Model, tmp_path: Path) -> None:
    study, well = asking(model, tmp_path), model.usual
    model.usual = sometimes(5, well)
    first = statuses(run_study(study, tmp_path / "runs", io.StringIO()))
    failed = sum(count for (_, how), count in first.items() if how == "failed")
    assert failed > 5
    sent = len(model.seen)
    model.usual = well
    second = statuses(run_study(study, tmp_path / "runs", io.StringIO()))
    assert not any(how == "failed" for _, how in second)
    assert second["llm_detection", "ok"] == second["llm_fuzzing", "ok"] == 6 * 2 * 2
    assert 5 < len(model.seen) - sent < sent / 2
    sent = len(model.seen)
    assert statuses(run_study(study, tmp_path / "runs", io.StringIO())) == second
    assert len(model.seen) == sent


def test_answers_that_cannot_be_read_are_not_asked_for_again(model: Model, tmp_path: Path) -> None:
    model.usual = good(lambda _: 0.5, explanation="")
    study = asking(model, tmp_path)
    first = statuses(run_study(study, tmp_path / "runs", io.StringIO()))
    assert first["explanation", "failed"] == 6
    sent = len(model.seen)
    assert statuses(run_study(study, tmp_path / "runs", io.StringIO())) == first
    assert len(model.seen) == sent
