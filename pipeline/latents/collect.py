"""Statistics, histograms and contexts of every latent, from its sparse activations."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute
from scipy import sparse

from pipeline.config import CollectConfig
from pipeline.progress import Advance
from pipeline.seeds import derive_seed, numpy_generator

LATENTS_IN_PART = 512

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Firings:
    """All firings of an SAE, sorted by latent and then by token: parallel arrays, and where each latent's begin."""

    start: Ints
    """[d_sae + 1]"""
    latent: Ints
    token: Ints
    """Place in the flattened corpus."""
    value: Floats

    @property
    def count(self) -> Ints:
        """Firings of each latent, [d_sae]."""
        return np.diff(self.start)

    def part(self, first: int, last: int) -> "Firings":
        """The firings of latents `first` to `last` - 1, numbered from zero."""
        rows = slice(self.start[first], self.start[last])
        start = self.start[first : last + 1] - self.start[first]
        return Firings(start, self.latent[rows] - first, self.token[rows], self.value[rows])


@dataclass(frozen=True)
class Windows:
    """The contexts in which latents fire, sorted by latent and then by window; a row for each such pair."""

    start: Ints
    """[d_sae + 1]: the first row of each latent"""
    latent: Ints
    window: Ints
    """Number of the context: place in the flattened corpus divided by its length."""
    peak: Floats
    """Largest activation in it."""
    first: Ints
    """Its first entry in `Firings`; its last is the one before the next row's first."""
    length: int
    """Tokens a context."""
    total: int
    """Contexts in the corpus."""

    @property
    def count(self) -> Ints:
        """Contexts in which each latent fires, [d_sae]."""
        return np.diff(self.start)


def describe(
    codes: sparse.csr_array,
    corpus: NDArray[np.int32],
    kept_tokens: int,
    decoder_norm: Floats,
    largest_cosine: Floats,
    config: CollectConfig,
    sequence_length: int,
    seed: int,
    advance: Advance,
) -> dict[str, pa.Table]:
    """The tables `latents` (without scores), `contexts` and `histograms` of an SAE from its codes [token, latent].

    `corpus` is the flattened token ids, of which the SAE saw so many; norm and cosine of the decoder rows are [d_sae].
    """

    def work(fired: Firings, first: int) -> dict[str, pa.Table]:
        own, part_seed = slice(first, first + len(fired.count)), derive_seed(seed, first)
        where = windows(fired, corpus.size, config.window)
        statistics = latent_table(fired, corpus, kept_tokens, decoder_norm[own], config, part_seed)
        tables = {
            "latents": statistics | {"largest_cosine": nullable(largest_cosine[own])},
            "contexts": contexts(fired, where, config, sequence_length, part_seed),
            "histograms": histograms(fired, config.histogram_bins),
        }
        return {name: pa.table(columns) for name, columns in tables.items()}

    return by_parts(firings(codes), work, advance)


def firings(codes: sparse.csr_array) -> Firings:
    """Sort the activations [token, latent] by latent."""
    columns = codes.tocsc()
    start = columns.indptr.astype(np.int64)
    latent = np.repeat(np.arange(codes.shape[1]), np.diff(start))
    return Firings(start, latent, columns.indices.astype(np.int64), columns.data.astype(np.float64))


def by_parts(
    fired: Firings, work: Callable[[Firings, int], dict[str, pa.Table]], advance: Advance
) -> dict[str, pa.Table]:
    """Do work that treats each latent alone, a part of the latents at a time, on all cores; gives whole tables.

    `work` gets a part's firings, its latents numbered from zero, and the number of the first; the tables that it
    returns have a column `latent`, which is numbered anew here. Sorting small parts is also faster than all at once.
    """
    firsts = range(0, len(fired.count), LATENTS_IN_PART)

    def one(first: int) -> dict[str, pa.Table]:
        last = min(first + LATENTS_IN_PART, len(fired.count))
        return {name: _moved(table, first) for name, table in work(fired.part(first, last), first).items()}

    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(one, firsts):
            parts.append(part)
            advance(min(len(parts) * LATENTS_IN_PART, len(fired.count)), len(fired.count))
    return {name: pa.concat_tables([part[name] for part in parts]) for name in parts[0]}


def _moved(table: pa.Table, first: int) -> pa.Table:
    place = table.column_names.index("latent")
    return table.set_column(place, "latent", compute.add(table["latent"], first))


def windows(fired: Firings, tokens: int, length: int) -> Windows:
    """Group the firings by context."""
    total = tokens // length
    key = fired.latent * total + fired.token // length
    first = np.flatnonzero(np.diff(key, prepend=-1))
    key = key[first]
    peak = np.maximum.reduceat(fired.value, first) if len(first) else np.zeros(0)
    latent = key // total
    start = np.searchsorted(latent, np.arange(len(fired.start)))
    return Windows(start, latent, key % total, peak, np.append(first, len(fired.latent)), length, total)


def rank_within(group: Ints, key: NDArray[Any]) -> tuple[Ints, Ints]:
    """Sort rows by group (not negative) and then by the key, ties as they stand; gives the order, and each sorted
    row's place in its group.
    """
    place = np.empty(len(key), dtype=np.int64)
    place[np.argsort(key, kind="stable")] = np.arange(len(key))
    return _ranked(group, np.argsort(group * len(key) + place))  # several times faster than np.lexsort


def shuffle_within(group: Ints, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """The same with the rows of each group in random order."""
    return _ranked(group, np.argsort(group + generator.random(len(group))))


def _ranked(group: Ints, order: Ints) -> tuple[Ints, Ints]:
    grouped = group[order]
    begins = np.flatnonzero(np.diff(grouped, prepend=-1))
    sizes = np.diff(np.append(begins, len(grouped)))
    return order, np.arange(len(grouped)) - np.repeat(begins, sizes)


def latent_table(
    fired: Firings, corpus: NDArray[np.int32], kept_tokens: int, decoder_norm: Floats, config: CollectConfig, seed: int
) -> dict[str, Any]:
    """The statistics of every latent: columns of the table `latents`, without the scores.

    `corpus` is the flattened token ids, `decoder_norm` is [d_sae].
    """
    count = fired.count
    alive = count > 0
    begins = fired.start[:-1][alive]
    statistics = {
        name: np.full(len(count), np.nan) for name in ("max_activation", "mean_activation", "top_token_share")
    }
    if len(begins):
        statistics["max_activation"][alive] = np.maximum.reduceat(fired.value, begins)
        statistics["mean_activation"][alive] = np.add.reduceat(fired.value, begins) / count[alive]
    everything = token_mass(fired.latent, corpus[fired.token], fired.value, len(count))
    sample = entropy_sample(fired, config.entropy_examples, seed)
    sampled = token_mass(fired.latent[sample], corpus[fired.token[sample]], fired.value[sample], len(count))
    statistics["top_token_share"] = everything.top_share
    return {
        "latent": np.arange(len(count)),
        "state": np.where(alive, "alive", "dead"),
        "firings": count,
        "density": count / max(kept_tokens, 1),
        **{name: nullable(values) for name, values in statistics.items()},
        "token_entropy": nullable(np.where(count >= config.entropy_examples, sampled.entropy, np.nan)),
        "token_entropy_all": nullable(everything.entropy),
        "top_token": pa.array(everything.top, mask=~alive),
        "decoder_norm": nullable(decoder_norm),
    }


def nullable(values: Floats) -> pa.Array:
    """What is not finite becomes NULL."""
    return pa.array(values, mask=~np.isfinite(values))


@dataclass(frozen=True)
class TokenMass:
    """How each latent's activation mass is spread over token ids; arrays of [d_sae], NaN where it has none."""

    entropy: Floats
    """Nats."""
    top: Ints
    top_share: Floats


def token_mass(latent: Ints, token: NDArray[Any], value: Floats, d_sae: int) -> TokenMass:
    """H = −Σ p ln p with p the share of a latent's activation mass that lies on a token id, and the largest p.

    The plug-in estimate grows with the number of examples: compare latents on equal numbers only.
    """
    vocabulary = int(token.max(initial=0)) + 1
    key, inverse = np.unique(latent * vocabulary + token, return_inverse=True)
    mass = np.bincount(inverse, weights=value, minlength=len(key))
    owner = key // vocabulary
    total = np.bincount(owner, weights=mass, minlength=d_sae)
    share = mass / total[owner]
    entropy = np.bincount(owner, weights=-share * np.log(share), minlength=d_sae)
    order, rank = rank_within(owner, -share)
    best = order[rank == 0]
    top, top_share = np.zeros(d_sae, dtype=np.int64), np.full(d_sae, np.nan)
    top[owner[best]], top_share[owner[best]] = key[best] % vocabulary, share[best]
    return TokenMass(np.where(total > 0, entropy, np.nan), top, top_share)


def entropy_sample(fired: Firings, examples: int, seed: int) -> Ints:
    """Entries of so many random firings of each latent (all of them where there are fewer)."""
    order, rank = shuffle_within(fired.latent, numpy_generator(seed, "entropy"))
    return np.sort(order[rank < examples])


def histograms(fired: Firings, bins: int) -> dict[str, Any]:
    """Counts of each alive latent's activations in equal-width bins from zero to its maximum."""
    alive = np.flatnonzero(fired.count)
    upper = np.maximum.reduceat(fired.value, fired.start[alive]) if len(alive) else np.zeros(0)
    row = np.repeat(np.arange(len(alive)), fired.count[alive])
    place = np.minimum((fired.value / upper[row] * bins).astype(np.int64), bins - 1)
    counts = np.bincount(row * bins + place, minlength=len(alive) * bins).astype(np.int32)
    lists = pa.ListArray.from_arrays(np.arange(len(alive) + 1, dtype=np.int32) * bins, counts)
    return {"latent": alive, "upper": upper, "counts": lists}


def contexts(fired: Firings, where: Windows, config: CollectConfig, sequence_length: int, seed: int) -> dict[str, Any]:
    """Top, quantile and non-activating contexts of every latent: columns of the table `contexts`."""
    silent_latent, silent_window = non_activating(where, config.non_activating_contexts, seed)
    top_order, top_rank = rank_within(where.latent, -where.peak)
    top_rows, top_rank = top_order[top_rank < config.top_contexts], top_rank[top_rank < config.top_contexts]
    strata, each = config.quantiles, config.contexts_per_quantile
    rows, stratum, rank = by_quantile(where.latent, where.peak, strata, each, numpy_generator(seed, "quantiles"))
    active = np.concatenate([top_rows, rows])
    silent = np.zeros(len(silent_latent), dtype=np.int64)
    window = np.concatenate([where.window[active], silent_window])
    positions, activations = _sparse_lists(fired, where, active, len(silent))
    per_sequence = sequence_length // where.length
    kinds = ["top", "quantile", "non_activating"]
    return {
        "latent": np.concatenate([where.latent[active], silent_latent]),
        "kind": pa.array(np.repeat(kinds, [len(top_rows), len(rows), len(silent)])),
        "stratum": np.concatenate([np.zeros(len(top_rows), dtype=np.int64), stratum, silent]),
        "rank": np.concatenate([top_rank, rank, _ranked(silent_latent, np.arange(len(silent_latent)))[1]]),
        "sequence": window // per_sequence,
        "start": window % per_sequence * where.length,
        "length": np.full(len(window), where.length),
        "positions": positions,
        "activations": activations,
    }


def by_quantile(
    latent: Ints, peak: Floats, quantiles: int, each: int, generator: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Random contexts from strata of equal count by peak activation: rows, their stratum, their rank in the stratum."""
    order, rank = rank_within(latent, peak)
    stratum = rank * quantiles // np.bincount(latent)[latent[order]]
    chosen, place = shuffle_within(latent[order] * quantiles + stratum, generator)
    keep = place < each
    return order[chosen[keep]], stratum[chosen[keep]], place[keep]


def non_activating(where: Windows, each: int, seed: int, among: Ints | None = None) -> tuple[Ints, Ints]:
    """Random contexts, without replacement, in which each alive latent is silent: latents and windows, by latent.

    `among` are the windows to draw from, all where there is none. A latent gets fewer where fewer exist, and none when
    it fires in every context: a state of its own.
    """
    alive = np.flatnonzero(where.count)
    generator = numpy_generator(seed, "non-activating")
    shuffled = generator.permutation(where.total if among is None else among)
    tries = min(4 * each, len(shuffled))
    offset = generator.integers(max(len(shuffled), 1), size=len(alive))
    tried = shuffled[(offset[:, None] + np.arange(tries)) % max(len(shuffled), 1)]
    silent = ~_fires_in(where, alive[:, None] * where.total + tried)
    place = np.cumsum(silent, axis=1)
    enough = place[:, -1] >= min(each, tries) if tried.size else np.zeros(len(alive), dtype=bool)
    keep = silent & (place <= each) & enough[:, None]
    latents, picked = [np.repeat(alive, keep.sum(1))], [tried[keep]]
    for latent in alive[~enough]:  # so dense that a draw misses: take from all that are left
        busy = where.window[where.start[latent] : where.start[latent + 1]]
        left = generator.permutation(np.setdiff1d(shuffled, busy))[:each]
        latents.append(np.full(len(left), latent))
        picked.append(left)
    order = np.argsort(np.concatenate(latents), kind="stable")
    return np.concatenate(latents)[order], np.concatenate(picked)[order]


def _fires_in(where: Windows, keys: Ints) -> NDArray[np.bool_]:
    known = where.latent * where.total + where.window
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.asarray(known[place] == keys)


def _sparse_lists(fired: Firings, where: Windows, rows: Ints, empty: int) -> tuple[pa.Array, pa.Array]:
    """Positions and activations within the contexts of `rows`, then `empty` empty lists."""
    entries, offsets = entries_of(where, rows)
    offsets = np.append(offsets, np.full(empty, offsets[-1])).astype(np.int32)
    positions = (fired.token[entries] % where.length).astype(np.uint8)
    values = fired.value[entries].astype(np.float32)
    return pa.ListArray.from_arrays(offsets, positions), pa.ListArray.from_arrays(offsets, values)


def entries_of(where: Windows, rows: Ints) -> tuple[Ints, Ints]:
    """The entries of `Firings` that lie in the contexts of `rows`, and where each context's begin (with a last end)."""
    sizes = where.first[rows + 1] - where.first[rows]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    return np.repeat(where.first[rows], sizes) + inside, offsets
