"""The specification curve: what each point is, and what may be concluded from all of them."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from core.resampling import bootstrap_auroc
from pipeline.autointerp import curve, explain_and_score, lexical
from pipeline.autointerp.examples import Protocol
from pipeline.autointerp.specification import Specification, delong, summed_up
from pipeline.config import Study
from pipeline.latents import collect
from pipeline.seeds import derive_seed

WINDOW, VOCABULARY, LATENTS = 16, 60, 40
CORPUS = np.random.default_rng(0).integers(0, VOCABULARY, 1_200 * WINDOW).astype(np.int32)
CURVE: dict[str, Any] = {
    "latents": 30,
    "explain_from": ["strongest", "random"],
    "score_on": ["strongest", "random"],
    "examples": [20, 40],
    "windows": [16],
}


def study(**changes: Any) -> Study:
    return Study.model_validate(
        {"name": "s", "corpus": {"context_length": 32}, "collect": {"window": WINDOW}}
        | {"autointerp": {"min_contexts": 20, "examples": 20, "specifications": CURVE | changes}}
    )


def halves(window: int) -> np.ndarray:
    return np.arange(len(CORPUS) // window) // 8 % 2 == 1


def firings(noise: float, seed: int) -> collect.Firings:
    """Latents that fire on a token of their own, but for a share of firings that are anywhere."""
    rng = np.random.default_rng(seed)
    own = np.stack([token == CORPUS for token in range(LATENTS)], axis=1)
    fires = np.where(rng.random(own.shape) < noise, rng.random(own.shape) < 1 / VOCABULARY, own)
    return collect.firings(sparse.csr_array(np.where(fires, rng.random(fires.shape) + 0.5, 0).astype(np.float32)))


def run(trained: collect.Firings, random: collect.Firings, **changes: Any) -> tuple[list[dict], dict]:
    tables = curve(trained, random, CORPUS, halves, VOCABULARY, study(**changes), 3, lambda _done, _total: None)
    return tables[0].to_pylist(), tables[1].to_pylist()[0]


@pytest.fixture(scope="module")
def better() -> tuple[list[dict], dict]:
    """Of latents that are clear against some that are half noise."""
    return run(firings(0.1, 1), firings(0.6, 2))


def test_every_protocol_is_there_once(better: tuple[list[dict], dict]) -> None:
    names = ("scorer", "explain_from", "score_on", "split_by", "examples", "window_tokens")
    pools, scorers, splits = ("strongest", "random"), ("detection", "fuzzing"), ("window", "document")
    asked = set(itertools.product(scorers, pools, pools, splits, (20, 40), (16,)))
    assert {tuple(row[name] for name in names) for row in better[0]} == asked
    assert len(better[0]) == len(asked)


def test_clear_latents_win_under_every_protocol_and_lose_when_the_sides_are_swapped(
    better: tuple[list[dict], dict],
) -> None:
    rows, whole = better
    assert all(row["status"] == "ok" and row["low"] > 0.5 for row in rows)
    assert all(row["trained_median"] > row["random_median"] for row in rows)
    assert whole["p_value"] == pytest.approx(0.001)
    assert (whole["latents"], whole["protocols"]) == (30, len(rows))
    assert whole["median"] == pytest.approx(np.median([row["auroc"] for row in rows]))
    worse, other = run(firings(0.6, 2), firings(0.1, 1))
    assert all(row["high"] < 0.5 for row in worse)
    assert other["median"] < 0.5


def test_latents_of_one_kind_cannot_be_told_apart() -> None:
    rows, whole = run(firings(0.3, 1), firings(0.3, 2))
    assert whole["p_value"] > 0.05
    assert np.mean([row["low"] <= 0.5 <= row["high"] for row in rows]) > 0.5


def test_a_point_is_what_that_protocol_gives_to_these_latents() -> None:
    """Both sides are one SAE, so that the sample must be all of its latents, whatever pairs they form."""
    fired = firings(0.4, 1)
    rows, _ = run(fired, fired, latents=LATENTS)
    at = Specification("fuzzing", "strongest", "random", "document", 20, 16)
    found = next(row for row in rows if all(row[name] == value for name, value in at._asdict().items()))
    own = study().autointerp.model_copy(update={"explain_from": ("strongest",), "score_on": ("random",)})
    config = own.model_copy(update={"split_by": "document"})
    where = collect.windows(fired, len(CORPUS), WINDOW)
    protocol = Protocol.of(config, study().collect, halves)
    words = [str(token) for token in range(VOCABULARY)]
    _, scores = explain_and_score(fired, where, CORPUS, words, protocol, config, derive_seed(3, "another draw"))
    again = [row["auroc"] for row in scores.to_pylist() if row["scorer"] == "fuzzing"]
    assert found["trained_median"] == pytest.approx(np.median(again), abs=0.03)
    assert found["trained_median"] == pytest.approx(found["random_median"], abs=0.03)


def test_protocols_for_which_too_few_latents_have_contexts_say_so() -> None:
    rows, whole = run(firings(0.1, 1), firings(0.6, 2), examples=[20, 400])
    without = [row for row in rows if row["examples"] == 400]
    assert all(row["status"] == "not_applicable" and row["auroc"] is None for row in without)
    assert "fewer than 20" in without[0]["reason"]
    assert whole["protocols"] == len(rows) - len(without)


def test_without_any_latent_there_is_a_curve_without_a_median() -> None:
    nothing = collect.firings(sparse.csr_array(np.zeros((len(CORPUS), 3), np.float32)))
    rows, whole = run(firings(0.1, 1), nothing)
    assert {row["status"] for row in rows} == {"not_applicable"}
    assert (whole["latents"], whole["protocols"], whole["median"], whole["p_value"]) == (0, 0, None, None)


def test_the_interval_is_that_of_a_bootstrap_and_the_area_that_of_a_hand() -> None:
    auroc, *_ = delong(np.array([0.9, 0.5, 0.2]), np.array([0.5, 0.1]))
    assert auroc == pytest.approx(4.5 / 6)  # pairs right 1 + 1, half + 1, 0 + 1
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0.7, 1, 150), rng.normal(0, 2, 120)
    found = delong(ours, theirs)
    truth = np.arange(270) < 150
    peer = bootstrap_auroc(truth, np.concatenate([ours, theirs]), rng=rng, replicates=4000)
    assert found == pytest.approx((peer.value, peer.low, peer.high), abs=0.006)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    found = [delong(rng.normal(1, 1, 60), rng.normal(0, 1, 60)) for _ in range(1000)]
    held = sum(low <= 0.7602 <= high for _, low, high in found)  # Phi(1 / sqrt 2)
    assert 925 <= held <= 975


def test_under_relabelling_the_p_value_is_uniform() -> None:
    """Correlated scores of many protocols, some missing, of latents whose side says nothing."""
    rng = np.random.default_rng(4)
    values = []
    for number in range(300):
        latent = rng.normal(size=60)
        scores = {}
        for protocol in range(8):
            own = latent + rng.normal(size=60)
            own[rng.random(60) < 0.1] = np.nan
            scores[Specification("detection", "random", "random", "window", protocol, 16)] = own
        _, whole = summed_up(scores, 30, number)
        values.append(whole["p_value"].to_pylist()[0])
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.04)
    assert np.mean(values) == pytest.approx(0.5, abs=0.07)


def test_rules_that_lead_nowhere_are_forgotten_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    fired = firings(0.5, 1)
    config = study().autointerp
    where = collect.windows(fired, len(CORPUS), WINDOW)
    words = [str(token) for token in range(VOCABULARY)]

    def tables() -> tuple[Any, Any]:
        protocol = Protocol.of(config, study().collect, halves)
        return explain_and_score(fired, where, CORPUS, words, protocol, config, 0)

    pruned = tables()
    monkeypatch.setattr(lexical, "_pruned", lambda levels, _base: levels)
    whole = tables()
    assert all(one.equals(other) for one, other in zip(pruned, whole, strict=True))
