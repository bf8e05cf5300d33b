"""Explaining and scoring: the split, the rules that are learnt, and scores that can be wrong."""

import json

import numpy as np
import pytest
from scipy import sparse

from pipeline.autointerp import check_scorers, explain_and_score, lexical, needs_llm, needs_sample
from pipeline.autointerp.examples import Examples, draw
from pipeline.autointerp.scorers import Rated, score
from pipeline.config import AutointerpConfig, CollectConfig
from pipeline.errors import LineupError
from pipeline.latents import collect

WINDOW, VOCABULARY = 16, 50
COLLECT = CollectConfig(window=WINDOW, quantiles=5)
CONFIG = AutointerpConfig(min_contexts=20, examples=20)
TOKEN, AFTER, NOISE, EVERYWHERE, RARE, DEAD = range(6)


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, 1_500 * WINDOW).astype(np.int32)


@pytest.fixture(scope="module")
def fired(corpus: np.ndarray) -> collect.Firings:
    """Latents that fire on token 7; on token 9 after token 8; at random; everywhere; on five tokens; never."""
    generator = np.random.default_rng(1)
    before = np.roll(corpus, 1)
    before[::WINDOW] = -1
    fires = np.stack(
        [
            corpus == 7,
            (corpus == 9) & (before == 8),
            generator.random(len(corpus)) < 0.02,
            np.ones(len(corpus), bool),
            np.arange(len(corpus)) % 5_000 == 3,
            np.zeros(len(corpus), bool),
        ],
        axis=1,
    )
    return collect.firings(sparse.csr_array(np.where(fires, generator.random(fires.shape) + 0.5, 0).astype(np.float32)))


@pytest.fixture(scope="module")
def where(fired: collect.Firings, corpus: np.ndarray) -> collect.Windows:
    return collect.windows(fired, len(corpus), WINDOW)


@pytest.fixture(scope="module")
def tables(fired: collect.Firings, where: collect.Windows, corpus: np.ndarray) -> tuple[list[dict], list[dict]]:
    words = [f" w{token}" for token in range(VOCABULARY)]
    config = AutointerpConfig(min_contexts=8, examples=20)  # token 9 after 8 is rare
    explanations, scores = explain_and_score(fired, where, corpus, words, COLLECT, config, seed=0)
    return explanations.to_pylist(), scores.to_pylist()


def auroc(tables: tuple[list[dict], list[dict]], latent: int, scorer: str) -> float:
    return next(row["auroc"] for row in tables[1] if (row["latent"], row["scorer"]) == (latent, scorer))


def test_no_context_is_shown_to_the_explainer_and_scored_as_well(
    fired: collect.Firings, where: collect.Windows, corpus: np.ndarray
) -> None:
    marked_by_place = np.arange(len(corpus), dtype=np.int32)  # a corpus in which every token is its own place
    split = draw(fired, where, marked_by_place, COLLECT, CONFIG, seed=0)
    for latent in (TOKEN, NOISE):
        seen = {row[0] for row in split.explain.tokens[split.explain.latent == latent]}
        for half in (split.strongest, split.quantiles):
            scored = {row[0] for row in half.tokens[half.latent == latent]}
            assert len(scored) > 10
            assert not seen & scored
        assert len(seen) == 20
    assert split.explain.active.sum() == split.strongest.active.sum()


def test_the_explainer_sees_the_strongest_contexts_and_the_quantiles_are_weaker(
    fired: collect.Firings, where: collect.Windows, corpus: np.ndarray
) -> None:
    split = draw(fired, where, np.arange(len(corpus), dtype=np.int32), COLLECT, CONFIG, seed=0)
    peaks = dict(zip(where.window[where.latent == TOKEN] * WINDOW, where.peak[where.latent == TOKEN], strict=True))

    def shown(half: Examples) -> list[float]:
        return [peaks[row[0]] for row in half.tokens[(half.latent == TOKEN) & half.active]]

    both = sorted(shown(split.explain) + shown(split.strongest), reverse=True)
    assert both == sorted(peaks.values(), reverse=True)[:20]
    assert np.mean(shown(split.quantiles)) < min(both)


def test_every_latent_without_a_score_has_its_reason(
    fired: collect.Firings, where: collect.Windows, corpus: np.ndarray
) -> None:
    split = draw(fired, where, corpus, COLLECT, CONFIG, seed=0)
    assert split.excluded[[TOKEN, NOISE]].tolist() == ["", ""]
    assert split.excluded[EVERYWHERE] == "no_non_activating_contexts"
    assert split.excluded[RARE] == "too_few_contexts"
    assert split.excluded[DEAD] == "dead"


def test_a_token_latent_is_explained_by_its_token_and_scores_one(tables: tuple[list[dict], list[dict]]) -> None:
    explanation = tables[0][TOKEN]
    assert "“ w7”" in explanation["text"]
    assert json.loads(explanation["rules"])[0]["tokens"] == [7]
    assert auroc(tables, TOKEN, "detection") == 1
    assert auroc(tables, TOKEN, "fuzzing") == 1


def test_a_latent_of_a_token_after_another_is_explained_by_the_pair(tables: tuple[list[dict], list[dict]]) -> None:
    assert "“ w8 w9”" in tables[0][AFTER]["text"]
    assert auroc(tables, AFTER, "detection") > 0.9


def test_a_latent_that_fires_at_random_scores_at_chance(tables: tuple[list[dict], list[dict]]) -> None:
    assert auroc(tables, NOISE, "detection") == pytest.approx(0.5, abs=0.25)
    assert auroc(tables, NOISE, "fuzzing") == pytest.approx(0.5, abs=0.25)


def test_chance_is_chance_over_many_random_latents(corpus: np.ndarray) -> None:
    fires = np.random.default_rng(2).random((len(corpus), 60)) < 0.01
    fired = collect.firings(sparse.csr_array(fires.astype(np.float32)))
    where = collect.windows(fired, len(corpus), WINDOW)
    words = [str(token) for token in range(VOCABULARY)]
    _, scores = explain_and_score(fired, where, corpus, words, COLLECT, CONFIG, seed=0)
    for scorer in ("detection", "fuzzing"):
        found = [row["auroc"] for row in scores.to_pylist() if row["scorer"] == scorer]
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - 0.5) < 4 * error


def test_the_scorer_uses_the_rules_that_are_stored_and_nothing_else() -> None:
    tokens = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int32)
    marked = np.array([[False, True, False], [False, False, False]])
    seen = Examples(np.zeros(2, np.int64), tokens, np.array([True, False]), marked, marked.astype(np.float32))
    lexicon = lexical.learn(seen, d_sae=1, vocabulary=10)
    probabilities = lexicon.probabilities(seen)
    own = {rule.tokens: rule for rule in lexical.rules(lexicon)[0]}
    longest = max((rule for rule in own.values() if rule.tokens[-1] == 2), key=lambda rule: len(rule.tokens))
    assert probabilities[0, 1] == pytest.approx(longest.probability, abs=1e-4)
    for level in lexicon.levels:
        level.kept[:] = False
    assert (lexicon.probabilities(seen) == lexicon.prior[0]).all()


def test_the_text_names_only_what_was_seen_to_fire() -> None:
    own = [lexical.Rule((1,), 3, 4, 0.6), lexical.Rule((2, 1), 0, 1, 0.4), lexical.Rule((3,), 1, 50, 0.02)]
    assert lexical.text(own, [" a", " b", " c", " d"]) == "fires on “ b” (3 of 4)"
    assert lexical.text(own[1:], [" a", " b", " c", " d"]) == "no token or n-gram stands out"


def test_the_scores_of_a_case_worked_by_hand() -> None:
    # positives .9 .5 .2, negatives .5 .1: pairs right 1+1, half+1, 0+1 = 4.5 of 6.
    # at .5: two of three positives said yes, one of two negatives said no: (2/3 + 1/2) / 2
    # F1: two right among the three that were said, and among the three that are: 2·2 / (3 + 3)
    # thresholds .9: 1 of 1; .5 (a tie): 2 of 3; .2: 3 of 4; each brings a third of the positives: (1 + 2/3 + 3/4) / 3
    rated = Rated(np.full(5, 3), np.array([0.9, 0.5, 0.2, 0.5, 0.1]), np.array([True, True, True, False, False]))
    found = score(rated)
    assert found.latent.tolist() == [3]
    assert found.auroc[0] == pytest.approx(4.5 / 6)
    assert found.balanced_accuracy[0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.f1[0] == pytest.approx(2 / 3)
    assert found.auprc[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (found.positives[0], found.negatives[0]) == (3, 2)


def by_definition(yes: np.ndarray, truth: np.ndarray) -> float:
    """Average precision, from each threshold's own counts."""
    found, before = 0.0, 0.0
    for threshold in sorted(set(yes), reverse=True):
        said = yes >= threshold
        recall = (said & truth).sum() / truth.sum()
        found += (recall - before) * (said & truth).sum() / said.sum()
        before = recall
    return found


def test_the_scores_of_many_latents_at_once_are_each_ones_own() -> None:
    generator = np.random.default_rng(3)
    latent = generator.integers(5, 9, 400)
    yes, truth = generator.integers(0, 8, 400) / 8, generator.random(400) < 0.3
    found = score(Rated(latent, yes, truth))
    for place, one in enumerate(found.latent.tolist()):
        own = latent == one
        alone = score(Rated(latent[own], yes[own], truth[own]))
        said, right = yes[own] >= 0.5, truth[own]
        assert found.auprc[place] == pytest.approx(by_definition(yes[own], right))
        assert found.f1[place] == pytest.approx(2 * (said & right).sum() / (said.sum() + right.sum()))
        assert [found.auroc[place], found.auprc[place]] == pytest.approx([alone.auroc[0], alone.auprc[0]])


def test_one_value_for_all_has_the_average_precision_of_the_share_of_positives() -> None:
    truth = np.arange(40) % 4 == 0
    assert score(Rated(np.zeros(40, int), np.full(40, 0.2), truth)).auprc[0] == pytest.approx(0.25)


def test_where_nothing_is_called_active_there_is_no_f1() -> None:
    found = score(Rated(np.zeros(4, int), np.array([0.4, 0.3, 0.2, 0.1]), np.array([True, True, False, False])))
    assert np.isnan(found.f1[0])
    assert (found.auroc[0], found.balanced_accuracy[0]) == (1, 0.5)


def test_no_latents_no_scores(corpus: np.ndarray) -> None:
    nothing = collect.firings(sparse.csr_array(np.zeros((len(corpus), 3), np.float32)))
    where = collect.windows(nothing, len(corpus), WINDOW)
    explanations, scores = explain_and_score(nothing, where, corpus, ["a"] * VOCABULARY, COLLECT, CONFIG, seed=0)
    assert scores.num_rows == 0
    assert explanations["status"].to_pylist() == ["not_applicable"] * 3


def test_only_the_scorers_that_were_asked_for_score(
    fired: collect.Firings, where: collect.Windows, corpus: np.ndarray
) -> None:
    config = CONFIG.model_copy(update={"scorers": ("fuzzing", "embedding")})
    words = [str(token) for token in range(VOCABULARY)]
    _, scores = explain_and_score(fired, where, corpus, words, COLLECT, config, seed=0)
    assert set(scores["scorer"].to_pylist()) == {"fuzzing"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorers": ("detektion",)}, "Unknown scorer 'detektion' in autointerp.scorers; known: detection, fuzzing,"),
        ({"scorers": ("fuzzing", "fuzzing")}, "none of them twice"),
        ({"explainers": ()}, "must name one or more"),
        ({"explainers": ("llm",)}, "add it to autointerp.explainers"),
        ({"explainers": ("lexical", "llm")}, r"set autointerp.llm.model \(found ''\)"),
        ({"scorers": ("llm_fuzzing",), "llm": {"model": "m", "endpoint": "localhost"}}, r"\(found 'localhost'\)"),
        ({"scorers": ("llm_fuzzing",), "llm": {"model": "m", "endpoint": "http://me:key@host/v1"}}, "LINEUP_LLM_KEY"),
        (
            {"scorers": ("llm_fuzzing",), "examples": 20, "llm": {"model": "m", "endpoint": "http://host"}},
            "explain_exa",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(settings: dict, message: str) -> None:
    with pytest.raises(LineupError, match=message):
        check_scorers(AutointerpConfig(**settings))


def test_a_language_model_is_needed_only_where_it_is_asked() -> None:
    ready = {"llm": {"model": "m", "endpoint": "http://127.0.0.1:1/v1"}}
    plain, sentence = AutointerpConfig(), AutointerpConfig(scorers=("embedding",))
    words, numbers = (
        AutointerpConfig(explainers=("lexical", "llm"), **ready),
        AutointerpConfig(scorers=("llm_fuzzing",)),
    )
    assert [needs_llm(each) for each in (plain, sentence, words, numbers)] == [False, False, True, True]
    assert [needs_sample(each) for each in (plain, sentence, words, numbers)] == [False, True, True, True]
    check_scorers(plain)
    check_scorers(words)


def test_same_seed_same_tables(fired: collect.Firings, where: collect.Windows, corpus: np.ndarray) -> None:
    words = [str(token) for token in range(VOCABULARY)]
    one, same = (explain_and_score(fired, where, corpus, words, COLLECT, CONFIG, seed=5) for _ in range(2))
    assert one[0].equals(same[0])
    assert one[1].equals(same[1])
