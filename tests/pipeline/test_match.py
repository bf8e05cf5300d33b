"""Correlations of sparse activations against NumPy's on the dense ones; cosines of decoder rows, matched and not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from pipeline.latents.match import ROWS, best_matches, correlations, largest_cosines, seed_stability


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    one = generator.random((400, 7)) * (generator.random((400, 7)) < 0.1)
    other = generator.random((400, 5)) * (generator.random((400, 5)) < 0.1)
    other[:, 3] = 2 * one[:, 6]
    one[:, 0] = 0  # a dead latent
    return one, other


def test_correlations_equal_those_of_the_dense_activations(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = pair
    found = correlations(sparse.csr_array(one), sparse.csr_array(other))
    expected = np.corrcoef(one[:, 1:].T, other.T)[:6, 6:]
    assert found[1:] == pytest.approx(expected, abs=1e-6)
    assert (found[0] == 0).all()


def test_activations_whose_squares_overflow_match_nothing(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = (sparse.csr_array(side.astype(np.float32)) for side in pair)
    calm = correlations(one, other)
    wild = one.copy()
    wild.data[wild.indices == 6] *= 1e38
    found = correlations(wild, sparse.csr_array(other * np.float32(1e30)))
    assert (found[6] == 0).all()
    assert np.isfinite(found).all()
    assert found[1:6] == pytest.approx(calm[1:6], abs=1e-5)


def test_the_best_match_is_first_and_dead_latents_have_none(pair: tuple[np.ndarray, np.ndarray]) -> None:
    table = best_matches(correlations(*map(sparse.csr_array, pair)), keep=3).to_pylist()
    assert {row["latent"] for row in table} == {1, 2, 3, 4, 5, 6}
    first = next(row for row in table if row["latent"] == 6)
    assert (first["rank"], first["other_latent"]) == (0, 3)
    assert first["correlation"] == pytest.approx(1)
    for latent in range(1, 7):
        mine = [row["correlation"] for row in table if row["latent"] == latent]
        assert mine == sorted(mine, reverse=True)
        assert len(mine) <= 3


def rows(number: int, d_in: int, seed: int = 0) -> torch.Tensor:
    """Random directions of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, d_in, generator=generator) * torch.rand(number, 1, generator=generator)


def everyone(decoder: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(decoder), dtype=torch.bool)


def test_the_largest_cosine_is_that_of_every_pair_but_oneself() -> None:
    decoder = rows(ROWS + 100, 12)
    unit = decoder.double().numpy() / np.linalg.norm(decoder.double().numpy(), axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(len(unit))
    assert largest_cosines(decoder).numpy() == pytest.approx(cosines.max(1), abs=1e-5)


def test_largest_cosines_of_a_case_worked_by_hand() -> None:
    # rows 0 and 1 are one direction in two lengths, row 2 is opposite to them, row 3 at right angles, row 4 nothing
    decoder = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert largest_cosines(decoder).tolist() == [1, 1, 0, 0, 0]


@given(st.integers(0, 20))
def test_the_same_directions_in_another_order_sign_and_length_are_wholly_stable(seed: int) -> None:
    decoder = rows(40, 8, seed)
    generator = torch.Generator().manual_seed(seed)
    other = decoder[torch.randperm(40, generator=generator)] * torch.linspace(0.5, 3, 40)[:, None]
    other = other * torch.randint(0, 2, (40, 1), generator=generator).mul(2).sub(1)
    assert seed_stability(decoder, everyone(decoder), other, everyone(other)) == pytest.approx(1, abs=1e-5)


def test_directions_at_right_angles_are_not_stable_at_all() -> None:
    one, two = torch.eye(8)[:4], torch.eye(8)[4:]
    assert seed_stability(one, everyone(one), two, everyone(two)) == 0


def test_the_matching_is_the_best_of_all_and_not_the_greedy_one() -> None:
    # |cosines| [[0.6, 0.5], [0.55, 0]]: 0.5 + 0.55 beats 0.6 + 0
    one = torch.eye(4)[:2]
    two = torch.tensor([[0.6, -0.55, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
    two[0, 2], two[1, 3] = math.sqrt(1 - 0.36 - 0.3025), math.sqrt(0.75)
    assert seed_stability(one, everyone(one), two, everyone(two)) == pytest.approx((0.5 + 0.55) / 2)


def test_only_alive_latents_are_matched_as_many_as_the_smaller_sae_has() -> None:
    one, two = torch.eye(6), torch.eye(6)
    alive = torch.tensor([True, True, False, False, False, False])
    assert seed_stability(one, alive, two, everyone(two)) == 1
    assert seed_stability(one, alive, two, ~alive) == 0
    assert seed_stability(one, alive, two, torch.zeros(6, dtype=torch.bool)) is None


def test_random_directions_match_as_chance_has_it() -> None:
    # the mean |cosine| of two random directions in d dimensions: gamma(d/2) / (sqrt(pi) gamma((d+1)/2))
    d_in, alone = 16, torch.tensor([True])
    expected = math.gamma(d_in / 2) / (math.sqrt(math.pi) * math.gamma((d_in + 1) / 2))
    pairs = zip(rows(3_000, d_in, 1).split(1), rows(3_000, d_in, 2).split(1), strict=True)
    found = [seed_stability(one, alone, two, alone) for one, two in pairs]
    assert np.mean(np.array(found, dtype=float)) == pytest.approx(expected, rel=0.05)
    many = seed_stability(rows(200, d_in, 1), everyone(rows(200, d_in)), rows(200, d_in, 2), everyone(rows(200, d_in)))
    assert many is not None
    assert 2 * expected < many < 0.9  # with a choice among 200, chance does better
