"""Laws of drawing: matched pairs, an even pool, and a session that neither repeats latents nor can be guessed."""

import math
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_experiment import candidates, design

from app.blind.design import Design, DesignError
from app.blind.sampling import (
    BLOCKS,
    CALIPER,
    Candidate,
    Pair,
    Trial,
    draw_evenly,
    draw_pool,
    draw_session,
    match,
    permuted_blocks,
)

EXAMPLES = settings(deadline=None, max_examples=60)


def latent(sae: int, number: int, density: float, variant: str, layer: int = 1) -> Candidate:
    return Candidate(sae, number, variant, layer, density, {})


def distance(pair: Pair) -> float:
    return abs(math.log10(pair.trained.density) - math.log10(pair.random.density))


@st.composite
def populations(draw: st.DrawFn) -> tuple[list[Candidate], list[Candidate]]:
    densities = st.lists(st.floats(1e-4, 1e-2), max_size=12)
    found: dict[str, list[Candidate]] = {}
    for sae, (variant, layer) in enumerate((v, la) for v in ("trained", "step0", "control") for la in (1, 3)):
        own = [latent(sae, n, density, variant, layer) for n, density in enumerate(draw(densities))]
        found.setdefault(variant, []).extend(own)
    return found["trained"], found["step0"] + found["control"]


@EXAMPLES
@given(populations(), st.integers(0, 2**32))
def test_a_match_is_within_the_layer_and_the_caliper_and_uses_no_latent_twice(
    population: tuple[list[Candidate], list[Candidate]], seed: int
) -> None:
    trained, random = population
    pairs = match(trained, random, Random(seed))
    assert all(pair.trained.layer == pair.random.layer for pair in pairs)
    assert all(pair.trained in trained and pair.random in random for pair in pairs)
    assert all(distance(pair) <= CALIPER for pair in pairs)
    used = [member.key for pair in pairs for member in (pair.trained, pair.random)]
    assert len(set(used)) == len(used)
    # Nothing that could still be matched is left.
    left = [c for c in trained if c.key not in used], [c for c in random if c.key not in used]
    assert not [1 for a in left[0] for b in left[1] if a.layer == b.layer and distance(Pair(a, b)) <= CALIPER]
    assert pairs == match(trained, random, Random(seed))


@EXAMPLES
@given(st.lists(st.floats(1e-4, 1e-2), min_size=1, max_size=12), st.floats(1e-4, 1e-2), st.integers(0, 99))
def test_a_latent_gets_the_nearest_one(densities: list[float], wanted: float, seed: int) -> None:
    trained = [latent(0, number, density, "trained") for number, density in enumerate(densities)]
    pairs = match(trained, [latent(1, 0, wanted, "step0")], Random(seed), caliper=10)
    nearest = min(abs(math.log10(density / wanted)) for density in densities)
    assert [distance(pair) for pair in pairs] == [pytest.approx(nearest, abs=1e-12)]


def test_variants_share_the_trained_latents_of_a_layer_fairly() -> None:
    trained = [latent(0, number, 0.01, "trained") for number in range(20)]
    random = [latent(sae, number, 0.01, name) for sae, name, n in ((1, "a", 200), (2, "b", 30)) for number in range(n)]
    found = Counter(pair.random.variant for pair in match(trained, random, Random(0)))
    assert found == {"a": 10, "b": 10}


@EXAMPLES
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.floats(0, 1), st.integers(0, 99))
def test_an_even_draw_takes_as_many_of_each_cell_as_there_are(sizes: list[int], share: float, seed: int) -> None:
    pairs = [
        Pair(latent(0, 100 * cell + n, 0.01, "trained", cell), latent(1, 100 * cell + n, 0.01, "a", cell))
        for cell, size in enumerate(sizes)
        for n in range(size)
    ]
    wanted = round(share * len(pairs))
    drawn = draw_evenly(pairs, wanted, Random(seed))
    assert len(drawn) == len({pair.random.key for pair in drawn}) == wanted
    counts = Counter(pair.cell[0] for pair in drawn)
    most = max(counts.values(), default=0)
    # A cell has one less than the fullest at most, unless it has nothing left.
    assert all(counts[cell] >= min(size, most - 1) for cell, size in enumerate(sizes))


def test_an_even_draw_refuses_what_is_not_there() -> None:
    with pytest.raises(DesignError, match="3 pairs"):
        draw_evenly([], 3, Random(0))


def test_the_pool_is_even_and_practice_has_pairs_of_its_own() -> None:
    own = design(form="pair", practice=5)
    pairs = draw_pool(candidates(own.layers, own.variants, 40), own, Random(0))
    main, practice = ([pair for pair in pairs if pair.role == role] for role in ("main", "practice"))
    assert len(practice) == own.practice_pairs == 5
    assert len(main) == 2 * own.rater_pairs == 44
    assert set(Counter(pair.cell for pair in main).values()) == {11}
    members = [member.key for pair in pairs for member in (pair.trained, pair.random)]
    assert len(set(members)) == len(members)
    assert all(pair.trained.variant == "trained" and pair.random.variant in own.variants for pair in pairs)


def test_a_pool_of_its_own_size_and_one_that_takes_what_there_is() -> None:
    population = candidates((1, 3), ("step0", "control"), 10)
    sized = draw_pool(population, design(pool=15), Random(0))
    assert sum(pair.role == "main" for pair in sized) == 15
    # A rater needs 10 + 2 pairs and practice 2: of 40 pairs, twice the need is there; of 16, it is not.
    few = draw_pool(candidates((1, 3), ("step0", "control"), 4), design(), Random(0))
    assert sum(pair.role == "main" for pair in few) == 14


@pytest.mark.parametrize("each", [0, 1, 3])
def test_too_few_pairs_are_an_error_that_says_what_was_found(each: int) -> None:
    with pytest.raises(DesignError) as caught:
        draw_pool(candidates((1, 3), ("step0", "control"), each), design(), Random(0))
    said = str(caught.value)
    assert "needs 12 matched pairs and 2 more for practice" in said
    assert f"found {4 * each}: layer 1 × step0 {each}, layer 1 × control {each}, layer 3 × step0 {each}" in said


def test_an_empty_cell_is_an_error_even_when_others_are_full() -> None:
    population = [c for c in candidates((1, 3), ("step0", "control"), 40) if (c.layer, c.variant) != (3, "control")]
    with pytest.raises(DesignError, match="layer 3 × control 0"):
        draw_pool(population, design(), Random(0))


@EXAMPLES
@given(st.integers(0, 100).map(lambda half: 2 * half), st.integers(0, 2**32))
def test_permuted_blocks_are_even_blocks_that_are_half_and_half(length: int, seed: int) -> None:
    values = permuted_blocks(length, Random(seed))
    assert len(values) == length
    assert 2 * sum(values) == length
    sums = [0]
    for value in values:
        sums.append(sums[-1] + (1 if value else -1))
    balanced = [at for at, total in enumerate(sums) if total == 0]
    # Blocks end where the sum is 0, so that happens at least once in the largest block.
    assert all(b - a <= BLOCKS[-1] for a, b in pairwise(balanced))


def test_block_sizes_vary_and_places_favour_neither() -> None:
    drawn = [permuted_blocks(24, Random(seed)) for seed in range(600)]
    for place in range(24):
        share = sum(values[place] for values in drawn) / len(drawn)
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(len(drawn)), place
    # With blocks of one size there would be places where every rater is balanced, so that the next can be guessed.
    for place in range(1, 24):
        assert not all(2 * sum(values[:place]) == place for values in drawn), place
    assert any(sum(values[:4]) in (0, 4) for values in drawn)


@st.composite
def designs(draw: st.DrawFn) -> Design:
    layers = draw(st.sampled_from([(1,), (1, 3), (0, 1, 3)]))
    return design(
        form=draw(st.sampled_from(["single", "pair"])),
        layers=layers,
        variants=draw(st.sampled_from([("step0",), ("step0", "control")])),
        trials=2 * draw(st.integers(5, 40)),
        practice=draw(st.integers(0, 20)),
        repeats=draw(st.floats(0, 0.2)),
        gold=draw(st.floats(0, 0.2)),
    )


def drawn(own: Design, seed: int) -> tuple[list[Pair], list[Pair], list[Trial]]:
    pairs = draw_pool(candidates(own.layers, own.variants, 150), own, Random(1))
    main, practice = ([pair for pair in pairs if pair.role == role] for role in ("main", "practice"))
    return main, practice, draw_session(main, practice, own, seed)


def members(trial: Trial) -> list[tuple[int, int]]:
    return [side.key for side in (trial.left, trial.right) if side is not None]


@EXAMPLES
@given(designs(), st.integers(0, 2**62))
def test_a_session_has_the_planned_trials_each_latent_once(own: Design, seed: int) -> None:
    main, practice, trials = drawn(own, seed)
    counts = own.counts
    assert Counter(trial.kind for trial in trials) == Counter(
        practice=counts.practice, main=counts.main, repeat=counts.repeats, gold=counts.gold
    )
    assert [trial.position for trial in trials] == list(range(counts.total))
    assert all(trial.kind == "practice" for trial in trials[: counts.practice])
    assert all((trial.right is None) == (own.form == "single") and trial.form == own.form for trial in trials)
    shown = [key for trial in trials if trial.kind != "repeat" for key in members(trial)]
    assert len(set(shown)) == len(shown)
    of_practice = {member.key for pair in practice for member in (pair.trained, pair.random)}
    of_main = {member.key for pair in main for member in (pair.trained, pair.random)}
    for trial in trials:
        assert set(members(trial)) <= (of_practice if trial.kind == "practice" else of_main)
    assert trials == draw_session(main, practice, own, seed)


@EXAMPLES
@given(designs(), st.integers(0, 2**62))
def test_the_truth_is_the_truth_and_half_and_half(own: Design, seed: int) -> None:
    main, _, trials = drawn(own, seed)
    for trial in trials:
        sides = {"left": trial.left.variant, "right": trial.right.variant} if trial.right else {}
        if own.form == "pair":
            assert [side for side, variant in sides.items() if variant == "trained"] == [trial.truth]
            assert trial.right is not None
            assert trial.left.layer == trial.right.layer
        else:
            assert trial.truth == ("trained" if trial.left.variant == "trained" else "random")
        if trial.kind == "gold" and own.form == "single":
            assert trial.truth == "random"
    truths = [trial.truth for trial in trials if trial.kind == "main"]
    assert set(Counter(truths).values()) == {own.trials // 2}
    first = "left" if own.form == "pair" else "trained"
    for kind, most in (("main", 4), ("practice", 4)):
        sums = [0]
        for trial in trials:
            if trial.kind == kind:
                sums.append(sums[-1] + (1 if trial.truth == first else -1))
        assert max(map(abs, sums)) <= most
        assert abs(sums[-1]) <= (0 if kind == "main" else 1)
    # Both of a pair are shown, in either form, so what is matched stays matched for every rater.
    keys = {key for trial in trials if trial.kind == "main" for key in members(trial)}
    shown = [pair for pair in main if {pair.trained.key, pair.random.key} <= keys]
    assert 2 * len(shown) == len(keys)
    cells = Counter(pair.cell for pair in shown)
    assert max(cells.values()) - min(cells[pair.cell] for pair in main) <= 1


@EXAMPLES
@given(designs(), st.integers(0, 2**62))
def test_repeats_come_late_with_sides_swapped_and_gold_is_spread(own: Design, seed: int) -> None:
    _, _, trials = drawn(own, seed)
    repeats = [trial for trial in trials if trial.kind == "repeat"]
    assert len({trial.repeats for trial in repeats}) == len(repeats)
    assert all((trial.repeats is None) == (trial.kind != "repeat") for trial in trials)
    for trial in repeats:
        assert trial.repeats is not None
        original = trials[trial.repeats]
        assert original.kind == "main"
        assert trial.position - original.position >= 8
        assert members(trial) == members(original)[::-1]
        swapped = {"left": "right", "right": "left"}
        assert trial.truth == swapped.get(original.truth, original.truth)
    real = trials[own.practice :]
    gold = [at for at, trial in enumerate(t for t in real if t.kind != "repeat") if trial.kind == "gold"]
    assert all(trial.kind != "gold" for trial in real[:3])
    # One in each equal stretch: never two stretches and more without, but for the three at the start.
    stretch = (own.trials - 2) / max(1, len(gold)) + 1
    assert all(b - a <= 2 * stretch for a, b in pairwise(gold))
    assert all(
        3 + number * (stretch - 1) - 1 <= at - number <= 3 + (number + 1) * stretch for number, at in enumerate(gold)
    )


def test_seeds_give_different_sessions() -> None:
    own = design()
    orders = {tuple(trial.left.key for trial in drawn(own, seed)[2]) for seed in range(20)}
    assert len(orders) == 20
