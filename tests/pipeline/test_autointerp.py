"""Explaining and scoring: the split, the rules that are learnt, and scores that can be wrong."""

import itertools
import json

import numpy as np
import pytest
from scipy import sparse

from core.errors import UserError
from pipeline.autointerp import check_scorers, explain_and_score, lexical, needs_llm, needs_sample, score_metrics
from pipeline.autointerp.examples import Examples, Protocol, draw
from pipeline.autointerp.scorers import Rated, score
from pipeline.config import AutointerpConfig, CollectConfig, Pool, SplitBy
from pipeline.latents import collect

WINDOW, VOCABULARY = 16, 50
COLLECT = CollectConfig(window=WINDOW, quantiles=5)
CONFIG = AutointerpConfig(min_contexts=20, examples=20)
TOKEN, AFTER, NOISE, EVERYWHERE, RARE, DEAD = range(6)
DOCUMENT = 10
"""Windows of each document; the odd ones are in the second half."""


def halves(window: int) -> np.ndarray:
    return np.arange(1_500 * WINDOW // window) // DOCUMENT % 2 == 1


def protocol(config: AutointerpConfig) -> Protocol:
    return Protocol.of(config, COLLECT, halves)


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
    pools = {"explain_from": "strongest", "score_on": "strongest"}
    config = AutointerpConfig(min_contexts=8, examples=8, **pools)  # token 9 after 8 is rare
    explanations, scores = explain_and_score(fired, where, corpus, words, protocol(config), config, seed=0)
    return explanations.to_pylist(), scores.to_pylist()


def auroc(tables: tuple[list[dict], list[dict]], latent: int, scorer: str) -> float:
    return next(row["auroc"] for row in tables[1] if (row["latent"], row["scorer"]) == (latent, scorer))


POOLS: tuple[Pool, ...] = ("strongest", "quantiles", "random")


@pytest.fixture(scope="module", params=["window", "document"])
def split_by(request: pytest.FixtureRequest) -> SplitBy:
    return request.param  # type: ignore[no-any-return]


def places(examples: Examples, latent: int, active: bool | None = None) -> set[int]:
    """Windows of a latent's examples, drawn from a corpus in which every token is its own place."""
    own = examples.latent == latent
    return set((examples.tokens[own if active is None else own & (examples.active == active)][:, 0] // WINDOW).tolist())


def test_no_context_is_shown_to_the_explainer_and_scored_as_well(
    fired: collect.Firings, where: collect.Windows, corpus: np.ndarray, split_by: SplitBy
) -> None:
    config = CONFIG.model_copy(update={"explain_from": POOLS, "score_on": POOLS, "split_by": split_by})
    split = draw(fired, where, np.arange(len(corpus), dtype=np.int32), protocol(config), seed=0)
    for latent, (shown, scored) in itertools.product(
        (TOKEN, NOISE), itertools.product(split.explain.values(), split.score.values())
    ):
        for half in (shown, scored):
            assert [len(places(half, latent, active)) for active in (True, False)] == [10, 10]
        assert not places(shown, latent) & places(scored, latent)
        if split_by == "document":
            assert not {p // DOCUMENT for p in places(shown, latent)} & {p // DOCUMENT for p in places(scored, latent)}


def test_each_pool_is_what_its_name_says(
    fired: collect.Firings, where: collect.Windows, corpus: np.ndarray, split_by: SplitBy
) -> None:
    config = CONFIG.model_copy(update={"explain_from": POOLS, "score_on": POOLS, "split_by": split_by})
    split = draw(fired, where, np.arange(len(corpus), dtype=np.int32), protocol(config), seed=0)
    peaks = dict(zip(where.window[where.latent == TOKEN], where.peak[where.latent == TOKEN], strict=True))
    ranked = sorted(peaks, key=lambda window: -peaks[window])

    def ranks(half: Examples) -> list[int]:
        return sorted(ranked.index(window) for window in places(half, TOKEN, active=True))

    strongest = [ranks(half["strongest"]) for half in (split.explain, split.score)]
    assert all(max(own) < 45 for own in strongest)  # of some 400, the first ten of either half
    if split_by == "document":
        second = halves(WINDOW)
        expected = [[r for r, w in enumerate(ranked) if second[w] == part][:10] for part in (False, True)]
        assert strongest == expected
    for half in (split.explain, split.score):
        strata = np.array(ranks(half["quantiles"])) * 5 // len(ranked)
        assert (np.abs(np.bincount(strata, minlength=5) - 2) <= 1).all()  # those of the half, not quite of the whole
        assert max(ranks(half["random"])) > len(ranked) / 2
        assert ranks(half["random"]) != ranks(half["quantiles"])


def test_every_latent_without_a_score_has_its_reason(
    fired: collect.Firings, where: collect.Windows, corpus: np.ndarray
) -> None:
    split = draw(fired, where, corpus, protocol(CONFIG), seed=0)
    assert split.excluded[[TOKEN, NOISE]].tolist() == ["", ""]
    assert split.excluded[EVERYWHERE] == "too_few_non_activating_contexts"
    assert split.excluded[RARE] == "too_few_contexts"
    assert split.excluded[DEAD] == "dead"


@pytest.mark.parametrize(("silent", "reason"), [(19, "too_few_non_activating_contexts"), (20, "")])
def test_an_auroc_from_fewer_than_ten_negatives_is_a_state(corpus: np.ndarray, silent: int, reason: str) -> None:
    fires = np.ones((len(corpus), 1), np.float32)
    fires[: silent * WINDOW] = 0
    dense = collect.firings(sparse.csr_array(fires))
    config = AutointerpConfig(min_contexts=40, examples=40)
    split = draw(dense, collect.windows(dense, len(corpus), WINDOW), corpus, protocol(config), seed=0)
    assert split.excluded.tolist() == [reason]


def test_a_latent_of_one_document_has_nothing_to_be_scored_on_when_documents_are_split(corpus: np.ndarray) -> None:
    fires = np.zeros((len(corpus), 1), np.float32)
    fires[: DOCUMENT * WINDOW : WINDOW] = 1
    local = collect.firings(sparse.csr_array(fires))
    where = collect.windows(local, len(corpus), WINDOW)
    config = AutointerpConfig(min_contexts=10, examples=10)
    for how, reason in (("window", ""), ("document", "too_few_contexts")):
        own = protocol(config.model_copy(update={"split_by": how}))
        assert draw(local, where, corpus, own, seed=0).excluded.tolist() == [reason]


def test_scores_carry_their_protocol(fired: collect.Firings, where: collect.Windows, corpus: np.ndarray) -> None:
    config = CONFIG.model_copy(update={"explain_from": POOLS[:2], "score_on": POOLS[1:], "split_by": "document"})
    words = [str(token) for token in range(VOCABULARY)]
    explanations, scores = explain_and_score(fired, where, corpus, words, protocol(config), config, seed=0)
    rows = scores.to_pylist()
    assert {(row["explain_from"], row["score_on"]) for row in rows} == set(itertools.product(POOLS[:2], POOLS[1:]))
    assert {(row["split_by"], row["examples"]) for row in rows} == {("document", 20)}
    assert explanations.num_rows == 2 * len(where.count)
    named = [metric.name for metric in score_metrics(config)]
    assert named == [
        f"{scorer}_{protocol}_auroc"
        for protocol in ("quantiles", "strongest_to_quantiles", "strongest_to_random", "quantiles_to_random")
        for scorer in ("detection", "fuzzing")
    ]


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
    _, scores = explain_and_score(fired, where, corpus, words, protocol(CONFIG), CONFIG, seed=0)
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
    where, words = collect.windows(nothing, len(corpus), WINDOW), ["a"] * VOCABULARY
    explanations, scores = explain_and_score(nothing, where, corpus, words, protocol(CONFIG), CONFIG, seed=0)
    assert scores.num_rows == 0
    assert explanations["status"].to_pylist() == ["not_applicable"] * 3


def test_only_the_scorers_that_were_asked_for_score(
    fired: collect.Firings, where: collect.Windows, corpus: np.ndarray
) -> None:
    config = CONFIG.model_copy(update={"scorers": ("fuzzing", "embedding")})
    words = [str(token) for token in range(VOCABULARY)]
    _, scores = explain_and_score(fired, where, corpus, words, protocol(config), config, seed=0)
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
    with pytest.raises(UserError, match=message):
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
    one, same = (explain_and_score(fired, where, corpus, words, protocol(CONFIG), CONFIG, seed=5) for _ in range(2))
    assert one[0].equals(same[0])
    assert one[1].equals(same[1])
