"""Whether a number can tell trained from random latents: laws of the AUROCs and of the matching."""

from typing import Any

import numpy as np
import pytest

from pipeline.measures.comparisons import ALL, match_density, tell, tell_table

NAMES = ("density", "score")


def latents(n: int, shift: float, log_density: float, seed: int) -> dict[str, Any]:
    """Densities around a power of ten, and a score that is normal around `shift`."""
    rng = np.random.default_rng(seed)
    return {
        "latent": np.arange(n),
        "density": 10 ** rng.normal(log_density, 0.4, n),
        "score": rng.normal(shift, 1.0, n),
    }


def told(trained: Any, random: Any) -> dict[tuple[str, bool], dict[str, Any]]:
    return {(row["statistic"], row["matched"]): row for row in tell(trained, random, NAMES, seed=0)}


def test_by_hand() -> None:
    trained = {"density": np.full(6, 0.01), "score": np.array([5.0, 6, 7, 8, 9, 0])}
    random = {"density": np.full(5, 0.01), "score": np.array([1.0, 2, 3, 4, 5])}
    row = told(trained, random)["score", False]
    # 30 pairs: 6, 7, 8, 9 win all 5; 5 wins 4 and ties once; 0 wins none: (20 + 4.5) / 30
    assert row["auroc"] == pytest.approx(24.5 / 30)
    assert (row["trained"], row["random"], row["status"]) == (6, 5, "ok")


def test_a_number_that_does_not_differ_is_one_half_and_one_that_does_is_what_theory_says() -> None:
    same = [told(latents(200, 0, -2, seed), latents(200, 0, -2, 100 + seed)) for seed in range(30)]
    assert sum(rows["score", False]["low"] < 0.5 < rows["score", False]["high"] for rows in same) >= 26  # of 30, at 95%
    assert np.mean([rows[ALL, False]["auroc"] for rows in same]) == pytest.approx(0.5, abs=0.03)
    differ = [told(latents(200, 1, -2, seed), latents(200, 0, -2, 100 + seed)) for seed in range(30)]
    # two normals one deviation apart: Phi(1 / sqrt 2) = .7602
    assert sum(rows["score", False]["low"] < 0.7602 < rows["score", False]["high"] for rows in differ) >= 26
    swapped = told(latents(200, 0, -2, 100), latents(200, 1, -2, 0))
    assert swapped["score", False]["auroc"] == pytest.approx(1 - differ[0]["score", False]["auroc"])


def test_matching_takes_the_difference_in_density_away_and_leaves_the_others() -> None:
    rows = told(latents(4000, 1, -2, 1), latents(4000, 0, -2.5, 2))
    assert rows["density", False]["auroc"] > 0.75
    assert rows["density", True]["auroc"] == pytest.approx(0.5, abs=0.02)
    assert rows["score", True]["auroc"] == pytest.approx(0.76, abs=0.03)
    assert rows["score", True]["trained"] == rows["score", True]["random"] < 4000


def test_a_score_that_only_follows_density_tells_nothing_when_matched() -> None:
    trained, random = latents(4000, 0, -2, 1), latents(4000, 0, -2.5, 2)
    for side in (trained, random):
        side["score"] = np.log(side["density"])
    rows = told(trained, random)
    assert rows["score", False]["auroc"] > 0.75
    assert rows["score", True]["auroc"] == pytest.approx(0.5, abs=0.02)
    assert rows[ALL, True]["auroc"] == pytest.approx(0.5, abs=0.03)


def test_matching_takes_equally_many_from_each_bin_and_no_latent_twice() -> None:
    trained, random = 10 ** np.array([-1.05, -1.05, -1.05, -2.05, -3.05]), 10 ** np.array([-1.02, -1.08, -2.01, -4.0])
    one, other = match_density(trained, random, np.random.default_rng(0))
    assert len(one) == len(other) == 3  # two at 10^-1, one at 10^-2
    assert len(set(one.tolist())) == 3
    assert set(one.tolist()) < {0, 1, 2, 3}
    assert set(other.tolist()) == {0, 1, 2}


def test_too_few_values_are_a_reason_and_no_number() -> None:
    few = {"density": np.full(8, 0.01), "score": np.array([1.0, 2, 3, 4] + [np.nan] * 4)}
    row = told(few, latents(50, 0, -2, 1))["score", False]
    assert (row["auroc"], row["status"], row["trained"]) == (None, "not_applicable", 4)
    assert "fewer than 5" in row["reason"]
    assert told(few, latents(50, 0, -9, 1))["density", True]["status"] == "not_applicable"  # nothing can be matched


PLACE = {"model": "toy", "hook": "resid_post", "name": "topk", "sae_seed": 0}


def test_the_table_sets_each_random_sae_against_the_trained_one_of_its_layer() -> None:
    kinds = [(0, 1, True), (1, 3, True), (2, 1, False), (3, 3, False), (4, 7, False)]
    saes = [PLACE | {"sae": sae, "layer": layer, "is_trained": known} for sae, layer, known in kinds]
    values = {sae: latents(40, 0, -2, sae) for sae, *_ in kinds}
    seen: list[tuple[int, int]] = []
    table = tell_table(saes, values, {}, NAMES, 0, lambda done, total: seen.append((done, total)))
    rows = table.to_pylist()
    assert {(row["trained_sae"], row["random_sae"]) for row in rows} == {(0, 2), (1, 3)}
    assert len(rows) == 2 * 2 * 3
    assert seen[-1] == (12, 12)
    assert tell_table(saes, values, {}, NAMES, 0).equals(table)
    assert not tell_table(saes, values, {}, NAMES, 1).equals(table)


@pytest.mark.parametrize("axis", ["model", "hook", "name", "sae_seed"])
def test_only_saes_in_one_place_are_told_apart(axis: str) -> None:
    trained = PLACE | {"sae": 0, "layer": 1, "is_trained": True, "variant_seed": 0}
    random = [trained | {"sae": draw + 1, "is_trained": False, "variant_seed": draw} for draw in range(2)]
    values = {sae: latents(12, 0, -2, sae) for sae in range(3)}
    rows = tell_table([trained, *random], values, {}, NAMES, 0).to_pylist()
    assert {(row["trained_sae"], row["random_sae"]) for row in rows} == {(0, 1), (0, 2)}
    elsewhere = [sae | {axis: 9} for sae in random]
    assert tell_table([trained, *elsewhere], values, {}, NAMES, 0).num_rows == 0


def test_a_best_match_is_the_one_of_the_pair_however_many_other_saes_there_are() -> None:
    """Trained latents are matched with every variant, random ones with the trained one: a maximum would differ."""
    kinds = [(0, True), (1, False), (2, False)]
    saes = [PLACE | {"sae": sae, "layer": 1, "is_trained": known, "variant_seed": sae} for sae, known in kinds]
    rng = np.random.default_rng(0)
    values = {sae: latents(300, 0, -2, sae) for sae, _ in kinds}
    pairs = [(0, 1), (1, 0), (0, 2), (2, 0)]
    matches = {pair: dict(enumerate(rng.random(300).tolist())) for pair in pairs}
    for sae in values:  # what the column of the list holds
        own = [list(matches[pair].values()) for pair in pairs if pair[0] == sae]
        values[sae] |= {"best_match_correlation": np.max(own, axis=0)}
    names = ("density", "best_match_correlation")
    rows = tell_table(saes, values, matches, names, 0).to_pylist()
    found = [row for row in rows if row["statistic"] == "best_match_correlation" and not row["matched"]]
    assert all(row["low"] < 0.5 < row["high"] for row in found)
    alone = tell_table(saes[:2], {0: values[0], 1: values[1]}, matches, names, 0).to_pylist()
    assert alone == [row for row in rows if row["random_sae"] == 1]
