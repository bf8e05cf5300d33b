"""How well statistics and a regression on them tell the analysed latents apart: by hand, and as laws of the folds."""

import numpy as np
import pytest
from blind_rows import double, experiment, items, single
from hypothesis import given, settings
from hypothesis import strategies as st

from app.blind.analysis import FOLDS, Latents, _folds, out_of_fold
from app.blind.outcomes import MetricOutcome, Results
from app.blind.results import results
from core.resampling import logistic_cv
from core.stats import auroc


def found(pairs: int, values: dict[str, list[float | None]], labelled: int | None = None, raters: int = 1) -> Results:
    """Results where the first `labelled` items were labelled; each statistic has a value an item."""
    statistics = [{name: own[item] for name, own in values.items()} for item in range(2 * pairs)]
    rows = [single(f"r{r}", item, 5) for r in range(raters) for item in range(labelled or 2 * pairs)]
    return results(experiment(), rows, items(pairs, statistics))


def by_name(outcome: Results) -> dict[str, MetricOutcome]:
    return {metric.name: metric for metric in outcome.metrics}


def test_auroc_of_each_statistic_by_hand_the_most_telling_first() -> None:
    trained = [1.0, 0.0] * 5
    outcome = found(
        5,
        {
            "flat": [7.0] * 10,
            "perfect": list(trained),
            "reversed": [1 - value for value in trained],
            # trained 3 1 1 1 1 against random 2 2 0 0 0: 3 wins 5, each 1 wins 3: 17 of 25
            "some": [3, 2, 1, 2, 1, 0, 1, 0, 1, 0],
            "unknown": [None, 1.0] * 5,
        },
        raters=3,
    )
    metrics = by_name(outcome)
    assert [metric.name for metric in outcome.metrics] == ["perfect", "reversed", "some", "flat", "unknown"]
    values = {name: metric.auroc and metric.auroc.value for name, metric in metrics.items()}
    assert values == {"perfect": 1, "reversed": 0, "some": 0.68, "flat": 0.5, "unknown": None}
    distances = {name: metric.distance for name, metric in metrics.items()}
    assert distances == {"perfect": 0.5, "reversed": 0.5, "some": pytest.approx(0.18), "flat": 0, "unknown": None}
    # each latent once, whatever the number of raters
    assert (metrics["some"].trained, metrics["some"].random) == (5, 5)
    assert metrics["unknown"].reason == "0 trained and 5 random latents have a value; 5 of each are needed."
    assert outcome.logistic.reason == "5 trained and 5 random latents have a value; 10 of each are needed."


def test_a_latent_without_a_value_is_left_out_of_that_statistic_alone() -> None:
    outcome = by_name(found(6, {"a": [None, 0.0, *[1.0, 0.0] * 5], "b": [1.0, 0.0] * 6, "c": [float("nan")] * 12}))
    assert [(outcome[name].trained, outcome[name].random) for name in "abc"] == [(5, 6), (6, 6), (0, 0)]


def test_a_value_that_is_not_finite_is_missing() -> None:
    outcome = found(12, {"a": [float("inf"), *[0.0, 1.0] * 11, 0.0]})
    assert (outcome.metrics[0].trained, outcome.metrics[0].random) == (11, 12)
    assert outcome.logistic.auroc is not None
    assert outcome.logistic.trained == 12


def test_latents_without_a_label_say_nothing() -> None:
    # The last two pairs, never labelled, would turn the order round.
    values = [1.0, 0.0] * 5 + [0.0, 9.0] * 2
    (metric,) = found(7, {"a": values}, labelled=10).metrics
    assert metric.auroc is not None
    assert (metric.auroc.value, metric.trained, metric.random) == (1, 5, 5)


def test_both_latents_of_two_side_by_side_count() -> None:
    rows = [double("ada", pair, "left", 6) for pair in range(5)]
    outcome = results(experiment(form="pair"), rows, items(6, [{"a": float(item % 2)} for item in range(12)]))
    (metric,) = outcome.metrics
    assert metric.auroc is not None
    assert (metric.auroc.value, metric.trained, metric.random) == (0, 5, 5)


def test_the_interval_draws_pairs() -> None:
    # In half of the pairs both latents have 1, in half both have 0: as a pair they say nothing, so no replicate does.
    values = [float(item // 2 % 2) for item in range(40)]
    metric = by_name(found(20, {"a": list(values)}))["a"]
    assert metric.auroc is not None
    assert (metric.auroc.low, metric.auroc.high) == (0.5, 0.5)


def test_a_study_without_statistics_has_no_regression() -> None:
    outcome = found(12, {})
    assert outcome.metrics == ()
    assert outcome.logistic.reason == "The latents have no statistics."
    assert outcome.logistic.auroc is None


def simulated(seed: int, pairs: int, effect: float = 0.0, shared: int = 4) -> Latents:
    """Twelve statistics, the first `shared` nearly the same within a pair; the last tells by `effect`."""
    rng = np.random.default_rng(seed)
    weight = np.where(np.arange(12) < shared, 0.97, 0.0)
    own, common = rng.normal(size=(pairs, 2, 12)), rng.normal(size=(pairs, 1, 12))
    features = (np.sqrt(weight) * common + np.sqrt(1 - weight) * own).reshape(2 * pairs, 12)
    trained = np.tile([True, False], pairs)
    features[trained, -1] += effect
    return Latents(np.repeat(np.arange(pairs), 2), trained, tuple("abcdefghijkl"), features)


def test_what_cannot_be_told_apart_has_an_auroc_of_one_half_because_pairs_stay_together() -> None:
    together, apart = [], []
    for seed in range(60):
        latents = simulated(seed, 40)
        rng = np.random.default_rng(seed)
        together.append(auroc(latents.trained, out_of_fold(latents, rng)))
        apart.append(auroc(latents.trained, logistic_cv(latents.statistics, latents.trained, FOLDS, rng=rng)))
    # standard deviation of one about .07, of the mean of sixty .009
    assert np.mean(together) == pytest.approx(0.5, abs=0.03)
    assert np.mean(apart) < 0.46


def test_the_regression_finds_what_tells() -> None:
    latents = simulated(1, 60, effect=3.0)
    # one normal score three deviations apart: Φ(3 / √2) = .983
    assert auroc(latents.trained, out_of_fold(latents, np.random.default_rng(0))) == pytest.approx(0.983, abs=0.03)
    values = {name: latents.statistics[:, at].tolist() for at, name in enumerate(latents.names)}
    outcome = found(60, values)
    assert outcome.logistic.auroc is not None
    assert outcome.logistic.auroc.low > 0.9
    assert (outcome.logistic.trained, outcome.logistic.random) == (60, 60)
    assert outcome.metrics[0].name == "l"


@settings(deadline=None)
@given(st.lists(st.sampled_from(["both", "trained", "random"]), min_size=10, max_size=40), st.integers(0, 99))
def test_folds_keep_pairs_together_and_leave_both_classes_to_train_on(kinds: list[str], seed: int) -> None:
    rows = [(pair, trained) for pair, kind in enumerate(kinds) for trained in (True, False)
            if kind in ("both", "trained" if trained else "random")]  # fmt: skip
    pairs, trained = np.array([pair for pair, _ in rows]), np.array([trained for _, trained in rows])
    if min(trained.sum(), (~trained).sum()) < 10:
        return
    fold = _folds(Latents(pairs, trained, (), np.empty((len(rows), 0))), np.random.default_rng(seed))
    assert all(len(set(fold[pairs == pair])) == 1 for pair in pairs)
    sizes = np.bincount([fold[pairs == pair][0] for pair in set(pairs.tolist())], minlength=FOLDS)
    assert len(sizes) == FOLDS
    assert sizes.max() - sizes.min() <= 1
    for number in range(FOLDS):
        rest = trained[fold != number]
        assert rest.any()
        assert not rest.all()
