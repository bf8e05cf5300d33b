"""Correlations of sparse activations, against NumPy's on the dense ones."""

import numpy as np
import pytest
from scipy import sparse

from pipeline.match import best_matches, correlations


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
