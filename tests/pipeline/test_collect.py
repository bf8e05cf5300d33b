"""Statistics and contexts of latents, against the same things counted one by one."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from pipeline.config import CollectConfig
from pipeline.latents import collect

LENGTH, WINDOW = 16, 8
CONFIG = CollectConfig(
    window=WINDOW, top_contexts=3, quantiles=4, contexts_per_quantile=2, non_activating_contexts=5, histogram_bins=10,
    entropy_examples=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    """Activations [token, latent] of six latents: never, rare, everywhere, in every context, common, common."""
    generator = np.random.default_rng(0)
    values = generator.random((40 * LENGTH, 6)).astype(np.float32) + 0.01
    fires = generator.random(values.shape) < [0, 0.004, 1, 0, 0.2, 0.05]
    fires[::WINDOW, 3] = True
    return np.where(fires, values, 0)


@pytest.fixture(scope="module")
def corpus(dense: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 30, len(dense)).astype(np.int32)


@pytest.fixture(scope="module")
def fired(dense: np.ndarray) -> collect.Firings:
    return collect.firings(sparse.csr_array(dense))


@pytest.fixture(scope="module")
def where(dense: np.ndarray, fired: collect.Firings) -> collect.Windows:
    return collect.windows(fired, len(dense), WINDOW)


def test_windows_are_the_contexts_in_which_a_latent_fires_with_their_peaks(
    dense: np.ndarray, where: collect.Windows
) -> None:
    peaks = dense.reshape(-1, WINDOW, 6).max(axis=1)
    for latent in range(6):
        rows = slice(where.start[latent], where.start[latent + 1])
        assert where.window[rows].tolist() == np.flatnonzero(peaks[:, latent]).tolist()
        assert where.peak[rows] == pytest.approx(peaks[peaks[:, latent] > 0, latent])


def test_statistics_equal_those_counted_one_by_one(
    dense: np.ndarray, corpus: np.ndarray, fired: collect.Firings
) -> None:
    table = collect.latent_table(fired, corpus, len(dense), np.ones(6), CONFIG, seed=0)
    assert table["state"].tolist() == ["dead"] + ["alive"] * 5
    for latent in range(1, 6):
        values = dense[:, latent].astype(np.float64)
        mass = np.bincount(corpus, weights=values) / values.sum()
        entropy = -sum(share * np.log(share) for share in mass if share)
        assert table["firings"][latent] == (values > 0).sum()
        assert table["density"][latent] == pytest.approx((values > 0).mean())
        assert table["max_activation"][latent].as_py() == pytest.approx(values.max())
        assert table["mean_activation"][latent].as_py() == pytest.approx(values[values > 0].mean())
        assert table["token_entropy_all"][latent].as_py() == pytest.approx(entropy)
        assert table["top_token"][latent].as_py() == mass.argmax()
        assert table["top_token_share"][latent].as_py() == pytest.approx(mass.max())
    assert table["max_activation"][0].as_py() is None


def test_token_entropy_is_taken_over_the_fixed_number_of_examples_or_not_at_all(
    dense: np.ndarray, corpus: np.ndarray, fired: collect.Firings
) -> None:
    table = collect.latent_table(fired, corpus, len(dense), np.ones(6), CONFIG, seed=0)
    sample = collect.entropy_sample(fired, CONFIG.entropy_examples, seed=0)
    drawn = np.bincount(fired.latent[sample], minlength=6)
    assert drawn.tolist() == np.minimum(fired.count, CONFIG.entropy_examples).tolist()
    assert [value.as_py() is None for value in table["token_entropy"]] == (fired.count < 20).tolist()
    assert table["token_entropy"][2].as_py() <= np.log(20) + 1e-9 < table["token_entropy_all"][2].as_py()


def test_histograms_count_every_firing(dense: np.ndarray, fired: collect.Firings) -> None:
    table = collect.histograms(fired, 10)
    assert table["latent"].tolist() == [1, 2, 3, 4, 5]
    for latent, upper, counts in zip(table["latent"], table["upper"], table["counts"].to_pylist(), strict=True):
        values = dense[:, latent]
        expected, _ = np.histogram(values[values > 0].astype(np.float64), bins=10, range=(0, upper))
        assert counts == expected.tolist()


def rows_of(kind: str, latent: int, table: dict) -> list[int]:
    kinds = table["kind"].to_pylist()
    return [
        row for row, (k, owner) in enumerate(zip(kinds, table["latent"], strict=True)) if (k, owner) == (kind, latent)
    ]


def test_contexts_hold_the_activations_that_are_there(
    dense: np.ndarray, fired: collect.Firings, where: collect.Windows
) -> None:
    table = collect.contexts(fired, where, CONFIG, LENGTH, seed=0)
    for row, kind in enumerate(table["kind"].to_pylist()):
        begin = table["sequence"][row] * LENGTH + table["start"][row]
        values = np.zeros(WINDOW, dtype=np.float32)
        values[table["positions"][row].as_py()] = table["activations"][row].as_py()
        assert values.tolist() == dense[begin : begin + WINDOW, table["latent"][row]].tolist()
        assert (kind == "non_activating") == (values.max() == 0)


def test_top_contexts_are_the_strongest_in_order(
    dense: np.ndarray, fired: collect.Firings, where: collect.Windows
) -> None:
    table = collect.contexts(fired, where, CONFIG, LENGTH, seed=0)
    peaks = np.sort(dense.reshape(-1, WINDOW, 6).max(axis=1), axis=0)[::-1]
    for latent in (2, 3, 4, 5):
        found = [max(table["activations"][row].as_py()) for row in rows_of("top", latent, table)]
        assert found == pytest.approx(peaks[:3, latent])


def test_quantile_strata_have_equal_counts_and_rise(where: collect.Windows) -> None:
    generator = np.random.default_rng(0)
    rows, stratum, _ = collect.by_quantile(where.latent, where.peak, 4, 1_000, generator)
    mine = where.latent[rows] == 4
    counts = np.bincount(stratum[mine])
    assert counts.max() - counts.min() <= 1
    bounds = [where.peak[rows[mine & (stratum == s)]] for s in range(4)]
    assert all(low.max() <= high.min() for low, high in pairwise(bounds))


def test_non_activating_contexts_are_silent_and_distinct_and_none_is_a_state_not_a_loop(where: collect.Windows) -> None:
    latents, windows = collect.non_activating(where, 5, seed=0)
    counts = np.bincount(latents, minlength=6)
    assert counts.tolist() == [0, 5, 0, 0, 5, 5]  # 0 is dead; 2 and 3 fire in every context
    for latent in (1, 4, 5):
        mine = windows[latents == latent]
        assert len(set(mine.tolist())) == 5
        assert not set(mine.tolist()) & set(where.window[where.latent == latent].tolist())


def test_a_latent_that_is_silent_in_few_contexts_gets_those() -> None:
    values = np.ones((100 * WINDOW, 1), dtype=np.float32)
    values[: 2 * WINDOW] = 0
    where = collect.windows(collect.firings(sparse.csr_array(values)), len(values), WINDOW)
    assert sorted(collect.non_activating(where, 5, seed=0)[1].tolist()) == [0, 1]


def test_an_sae_of_dead_latents_has_empty_tables() -> None:
    fired = collect.firings(sparse.csr_array((80, 3), dtype=np.float32))
    where = collect.windows(fired, 80, WINDOW)
    assert (
        collect.latent_table(fired, np.zeros(80, np.int32), 80, np.ones(3), CONFIG, 0)["state"].tolist() == ["dead"] * 3
    )
    assert len(collect.contexts(fired, where, CONFIG, LENGTH, seed=0)["kind"]) == 0
    assert len(collect.histograms(fired, 10)["latent"]) == 0
