"""Agreement, bootstraps and the classifier against published values, independent formulas and simulated raters."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from core.resampling import (
    Level,
    _logistic,
    bootstrap_auroc,
    bootstrap_raters_and_items,
    krippendorff_alpha,
    logistic_cv,
)
from core.stats import auroc, weighted_auroc, wilson

LEVELS = get_args(Level)
OBSERVERS = {
    "A": "1 2 3 3 2 1 4 1 2 . . .",
    "B": "1 2 3 3 2 2 4 1 2 5 . 3",
    "C": ". 3 3 3 2 3 4 2 2 5 1 .",
    "D": "1 2 3 3 2 4 4 1 2 5 1 .",
}
"""Krippendorff 2011, section C: four observers, twelve units, missing data."""
TABLE = [[None if code == "." else int(code) for code in row.split()] for row in OBSERVERS.values()]


def some_ratings(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ratings = rng.integers(0, 5, (4, 12)).astype(float)
    ratings[rng.random(ratings.shape) < 0.3] = math.nan
    ratings[:2, :2] = [[0, 1], [2, 3]]  # never undefined
    return ratings


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level: Level, alpha: float) -> None:
    assert krippendorff_alpha(TABLE, level).alpha == pytest.approx(alpha, abs=5e-4)
    named = {
        rater: {str(unit): code for unit, code in enumerate(row) if code is not None}
        for rater, row in zip(OBSERVERS, TABLE, strict=True)
    }
    assert krippendorff_alpha(named, level).alpha == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_of_two_codes_worked_by_hand(level: Level) -> None:
    # Pairs 00, 01, 11, 11: of 8 coincidences 2 disagree; of 8·7 by chance 2·3·5. 1 - (2/8) / (30/56) = .5333
    assert krippendorff_alpha([[0, 0, 1, 1], [0, 1, 1, 1]], level).alpha == pytest.approx(1 - (2 / 8) / (30 / 56))


@given(st.integers(0, 1000))
def test_interval_alpha_compares_squared_differences_within_items_and_overall(seed: int) -> None:
    ratings = some_ratings(seed)
    items = [column[~np.isnan(column)] for column in ratings.T]
    items = [item for item in items if len(item) >= 2]
    pooled = np.concatenate(items)
    # A variance with n - 1 is half the mean squared difference of two different labels.
    within = sum(len(item) * item.var(ddof=1) for item in items) / len(pooled)
    assert krippendorff_alpha(ratings, "interval").alpha == pytest.approx(1 - within / pooled.var(ddof=1))


@given(st.integers(0, 1000))
def test_alpha_depends_on_what_its_level_says(seed: int) -> None:
    ratings = some_ratings(seed)
    shuffled = ratings[np.random.default_rng(seed).permutation(4)]
    changes = {"nominal": (ratings * 7) % 5, "ordinal": np.exp(ratings), "interval": 3 - 2 * ratings}
    for level, changed in changes.items():
        alpha = krippendorff_alpha(ratings, level).alpha
        assert krippendorff_alpha(changed, level).alpha == pytest.approx(alpha)
        assert krippendorff_alpha(shuffled, level).alpha == pytest.approx(alpha)
    assert krippendorff_alpha(np.exp(ratings), "interval").alpha != krippendorff_alpha(ratings, "interval").alpha


@pytest.mark.parametrize("level", LEVELS)
def test_raters_who_agree_have_one_and_raters_who_guess_have_zero(level: Level) -> None:
    rng = np.random.default_rng(0)
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]], level).alpha == 1
    assert krippendorff_alpha(rng.integers(0, 6, (3, 3000)), level).alpha == pytest.approx(0, abs=0.03)


def test_where_agreement_is_undefined_the_reason_is_said() -> None:
    nobody = krippendorff_alpha([[1, None], [None, 2]])
    assert nobody.alpha is None
    assert "two raters" in nobody.reason
    assert krippendorff_alpha({}) == krippendorff_alpha({"A": {"x": 1, "y": 2}}) == nobody
    same = krippendorff_alpha([[1, 1, 2], [1, 1, None]])
    assert same.alpha is None
    assert "the same" in same.reason
    with pytest.raises(ValueError, match="infinite"):
        krippendorff_alpha([[1, math.inf], [1, 2]])
    with pytest.raises(ValueError, match="table of raters by items"):
        krippendorff_alpha([1, 2, 3])


def crossed(right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    raters, items = np.indices(right.shape)
    return right.ravel(), raters.ravel(), items.ravel()


def test_the_crossed_bootstrap_holds_the_truth_where_wilson_counts_every_label_as_new() -> None:
    rng = np.random.default_rng(5)
    truth = norm.cdf(0.4 / math.sqrt(1 + 0.5**2 + 0.5**2))
    held = np.zeros((200, 2))
    for simulation in range(len(held)):
        ability, ease = rng.normal(0, 0.5, (12, 1)), rng.normal(0, 0.5, 40)
        right = rng.random((12, 40)) < norm.cdf(0.4 + ability + ease)
        both = bootstrap_raters_and_items(*crossed(right), rng=rng, replicates=300)
        naive = wilson(int(right.sum()), right.size)
        held[simulation] = both.low <= truth <= both.high, naive.low <= truth <= naive.high
    assert held[:, 0].mean() >= 0.90
    assert held[:, 1].mean() < 0.75


def test_when_only_raters_differ_the_interval_is_that_of_their_means() -> None:
    right = np.repeat(np.arange(20) % 2, 50).reshape(20, 50)
    found = bootstrap_raters_and_items(*crossed(right), rng=np.random.default_rng(0), replicates=4000)
    # twenty means of 0 or 1: standard error √(.25 / 20), however many items
    half = 1.96 * math.sqrt(0.25 / 20)
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.1 * half)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_rater_is_a_bootstrap_over_items_and_one_item_over_raters(axis: int) -> None:
    right = np.expand_dims(np.arange(200) % 4 > 0, axis)
    found = bootstrap_raters_and_items(*crossed(right), rng=np.random.default_rng(0), replicates=4000)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 200)
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.1 * half)


def test_the_crossed_bootstrap_takes_names_any_statistic_and_a_table_with_gaps() -> None:
    rng = np.random.default_rng(2)
    trained = rng.random(300) < 0.5
    scores = rng.normal(trained, 1)
    raters, items = rng.choice(["ann", "<b>bob</b>", "cy"], 300), rng.choice([f"item {i}" for i in range(90)], 300)

    def area(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return weighted_auroc(trained, values, weights)

    found = bootstrap_raters_and_items(scores, raters, items, area, rng=np.random.default_rng(0))
    again = bootstrap_raters_and_items(scores, raters, items, area, rng=np.random.default_rng(0))
    assert found == again
    assert found.value == pytest.approx(auroc(trained, scores))
    assert 0.5 < found.low < found.value < found.high < 1


def test_drawing_in_parts_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    right = rng.random((6, 50)) < 0.6
    whole = bootstrap_raters_and_items(*crossed(right), rng=np.random.default_rng(0), replicates=2001)
    monkeypatch.setattr("core.resampling._CELLS", 3000)
    parts = bootstrap_raters_and_items(*crossed(right), rng=np.random.default_rng(0), replicates=2001)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.01)


def test_what_cannot_be_bootstrapped_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="two raters or of two items"):
        bootstrap_raters_and_items([1, 0], ["a", "a"], ["x", "x"], rng=rng)
    with pytest.raises(ValueError, match="3 labels, 2 raters"):
        bootstrap_raters_and_items([1, 0, 1], ["a", "b"], ["x", "y"], rng=rng)
    with pytest.raises(ValueError, match="skipped"):
        bootstrap_raters_and_items([1, math.nan], ["a", "b"], ["x", "y"], rng=rng)
    with pytest.raises(ValueError, match="1 groups for 2 items"):
        bootstrap_auroc([True, False], [1, 0], ["a"], rng=rng)
    with pytest.raises(ValueError, match="None of 2000 bootstrap replicates"):
        bootstrap_raters_and_items(
            [1, 0], ["a", "b"], ["x", "y"], lambda _, weights: np.full(len(weights), math.nan), rng=rng
        )


def test_the_bootstrap_of_auroc_has_the_width_of_the_formula() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(400) % 2 == 0
    scores = rng.normal(labels, 1)
    found = bootstrap_auroc(labels, scores, rng=rng)
    # Hanley & McNeil 1982
    area, one, two = found.value, found.value / (2 - found.value), 2 * found.value**2 / (1 + found.value)
    error = math.sqrt((area * (1 - area) + 199 * (one - area**2) + 199 * (two - area**2)) / 200**2)
    assert area == pytest.approx(auroc(labels, scores))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.low < area < found.high


def test_items_that_belong_together_are_drawn_together() -> None:
    rng = np.random.default_rng(6)
    labels = np.arange(100) % 2 == 0
    scores = rng.normal(labels, 1)
    once = bootstrap_auroc(labels, scores, rng=rng, replicates=3000)
    repeated = np.repeat(labels, 4), np.repeat(scores, 4)
    naive = bootstrap_auroc(*repeated, rng=rng, replicates=3000)
    grouped = bootstrap_auroc(*repeated, np.repeat(np.arange(100), 4), rng=rng, replicates=3000)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.1)
    assert naive.high - naive.low == pytest.approx((once.high - once.low) / 2, rel=0.1)


def test_replicates_without_both_classes_are_left_out() -> None:
    found = bootstrap_auroc([True, False], [2, 1], rng=np.random.default_rng(0))
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_the_regression_finds_the_least_penalised_loss(ridge: float) -> None:
    rng = np.random.default_rng(8)
    rows = np.insert(rng.normal(size=(80, 5)), 0, 1, axis=1)
    truth = rows @ [0.5, 2, -1, 0, 0, 0] + rng.logistic(size=80) > 0

    def loss(at: np.ndarray) -> float:
        signed = np.where(truth, 1, -1) * (rows @ at)
        return np.log1p(np.exp(-signed)).sum() + ridge / 2 * (at[1:] ** 2).sum()

    expected = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7}).x
    assert _logistic(rows, truth, ridge) == pytest.approx(expected, abs=1e-5)


def test_the_regression_ends_where_a_line_separates_the_classes_and_the_penalty_is_slight() -> None:
    rows = np.insert(np.linspace(-1, 1, 40)[:, None], 0, 1, axis=1)
    found = _logistic(rows, rows[:, 1] > 0, 1e-6)
    assert np.isfinite(found).all()
    assert found[1] > 50


def study(seed: int, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % 2 == 0
    features = rng.normal(size=(rows, 4))
    features[:, 1] += truth
    return features, truth


def test_scores_out_of_fold_find_what_there_is_and_nothing_where_there_is_nothing() -> None:
    features, truth = study(0)
    scores = logistic_cv(features, truth, 5, rng=np.random.default_rng(0))
    assert ((scores > 0) & (scores < 1)).all()
    assert auroc(truth, scores) == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.08)
    unrelated = [
        auroc(truth, logistic_cv(study(seed)[0][:, [0, 2, 3]], truth, 5, rng=np.random.default_rng(seed)))
        for seed in range(20)
    ]
    assert np.mean(unrelated) == pytest.approx(0.5, abs=0.05)


def test_units_do_not_matter() -> None:
    features, truth = study(5)
    other = features * [1e6, 1e-6, -1, 1] + [0, 1e-6, 1, 0]
    first, second = (logistic_cv(each, truth, 5, rng=np.random.default_rng(0)) for each in (features, other))
    assert first == pytest.approx(second, abs=1e-6)


def test_a_row_has_no_part_in_the_scores_of_its_own_fold() -> None:
    features, truth = study(1)
    before = logistic_cv(features, truth, 5, rng=np.random.default_rng(0))
    features[17] = [50, math.nan, 3, -80]
    after = logistic_cv(features, truth, 5, rng=np.random.default_rng(0))
    # The other 39 rows of its fold are scored by the same model from the same means and medians; no other row is.
    assert (before == after).sum() == 39
    assert before[17] != after[17]


def test_rows_of_one_latent_are_not_learnt_from_one_another() -> None:
    rng = np.random.default_rng(3)
    truth, features = np.repeat(rng.permutation(60) < 30, 3), np.repeat(rng.normal(size=(60, 40)), 3, axis=0)
    latents = np.repeat([f"latent {i}" for i in range(60)], 3)
    leaking = auroc(truth, logistic_cv(features, truth, 5, rng=rng))
    held_apart = auroc(truth, logistic_cv(features, truth, 5, rng=rng, groups=latents))
    assert leaking > 0.9
    assert held_apart == pytest.approx(0.5, abs=0.2)


def test_a_value_that_is_missing_is_a_sign_like_any_other() -> None:
    truth = np.arange(60) % 2 == 0
    features = np.where(truth, math.nan, 3.25)[:, None]
    assert auroc(truth, logistic_cv(features, truth, 3, rng=np.random.default_rng(0))) == 1


def test_columns_that_never_vary_or_are_never_known_say_nothing() -> None:
    features, truth = study(2)
    useless = np.column_stack([features, np.full(200, 0.1), np.full(200, math.nan)])
    plain, padded = (logistic_cv(each, truth, 4, rng=np.random.default_rng(0)) for each in (features, useless))
    assert padded == pytest.approx(plain)
    nothing = logistic_cv(np.empty((200, 0)), truth, 4, rng=np.random.default_rng(0))
    assert nothing == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 1}, "2 to 100"),
        ({"folds": 101}, "2 to 100"),
        ({"ridge": 0}, "above 0"),
        ({"groups": np.zeros(200)}, "both classes"),
        ({"groups": [1, 2]}, "2 groups for 200"),
        ({"labels": [True]}, "one row an item"),
        ({"features": np.full((200, 1), math.inf)}, "infinite"),
    ],
)
def test_what_cannot_be_regressed_is_refused(change: dict[str, object], message: str) -> None:
    features, truth = study(0)
    arguments = {"features": features, "labels": truth, "folds": 5} | change
    with pytest.raises(ValueError, match=message):
        logistic_cv(**arguments, rng=np.random.default_rng(0))
