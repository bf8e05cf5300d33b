"""Differences over seeds: Welch's interval, what counts as a replicate, and when there is no interval."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.measures.comparisons import difference_table, replicates, welch_interval

PLACE = {"model": "toy", "hook": "resid_post", "name": "topk", "layer": 1}


def sae(number: int, variant: str, variant_seed: int = 0, sae_seed: int = 0, **changes: Any) -> dict[str, Any]:
    seeds = {"variant_seed": variant_seed, "sae_seed": sae_seed, "is_trained": variant == "trained"}
    return {"sae": number, "variant": variant, **PLACE, **seeds, **changes}


SAES = [
    *(sae(n, "trained", sae_seed=n) for n in range(3)),
    *(sae(3 + n, "random", variant_seed=n // 2, sae_seed=n % 2) for n in range(6)),
]
VALUES = {0: 0.90, 1: 0.92, 2: 0.91, 3: 0.80, 4: 0.82, 5: 0.70, 6: 0.74, 7: 0.75, 8: 0.79}


def test_the_interval_is_welchs() -> None:
    first, second = [0.9, 0.92, 0.91], [0.81, 0.72, 0.77, 0.9]
    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert welch_interval(first, second, 0.95) == pytest.approx((expected.low, expected.high))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        low, high = welch_interval(rng.normal(0, 1, 3).tolist(), rng.normal(0.5, 3, 5).tolist(), 0.95)
        covered += low <= 0.5 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.025)


def test_saes_on_one_draw_are_one_replicate_of_the_variant() -> None:
    random = [found for found in SAES if found["variant"] == "random"]
    assert replicates(random, VALUES) == pytest.approx([0.81, 0.72, 0.77])


def test_saes_on_the_only_draw_are_replicates_of_the_training() -> None:
    assert replicates(SAES[:3], VALUES) == [0.90, 0.92, 0.91]


def test_a_row_has_means_difference_interval_and_counts() -> None:
    (row,) = difference_table(SAES, {"fvu": VALUES}).to_pylist()
    assert (row["variant"], row["metric"], row["status"]) == ("random", "fvu", "ok")
    assert row["difference"] == pytest.approx(row["random"] - row["trained"]) == pytest.approx(0.7667 - 0.91, abs=1e-3)
    assert row["low"] < row["difference"] < row["high"]
    assert (row["trained_saes"], row["random_saes"]) == (3, 6)


def test_one_seed_gives_a_difference_and_no_interval() -> None:
    (row,) = difference_table([SAES[0], SAES[3]], {"fvu": VALUES}).to_pylist()
    assert row["difference"] == pytest.approx(-0.1)
    assert (row["low"], row["high"], row["status"]) == (None, None, "not_applicable")
    assert "one seed" in row["reason"]


def test_a_metric_without_a_value_on_one_side_is_a_state() -> None:
    (row,) = difference_table(SAES, {"ce_loss_recovered": {0: 0.9}}).to_pylist()
    assert (row["difference"], row["status"]) == (None, "not_applicable")
    assert (row["trained_saes"], row["random_saes"]) == (1, 0)


@pytest.mark.parametrize("axis", ["model", "hook", "name", "layer"])
def test_only_saes_in_one_place_are_compared(axis: str) -> None:
    elsewhere = [found | ({axis: 9} if found["variant"] == "random" else {}) for found in SAES]
    assert difference_table(elsewhere, {"fvu": VALUES}).num_rows == 0
