"""Draws what explainer and scorer see of each latent: firings come in, two halves of examples go out, split first."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from pipeline.collect import Firings, Ints, Windows, by_quantile, entries_of, non_activating
from pipeline.config import AutointerpConfig, CollectConfig


@dataclass(frozen=True)
class Examples:
    """Contexts of many latents, a row each: activating ones with their marks, non-activating ones without."""

    latent: Int[NDArray[np.int64], " example"]
    tokens: Int[NDArray[np.int32], "example position"]
    active: Bool[NDArray[np.bool_], " example"]
    marked: Bool[NDArray[np.bool_], "example position"]
    """Tokens whose activation reaches the threshold's share of the context's peak."""

    def part(self, rows: NDArray[np.bool_]) -> "Examples":
        """The examples that `rows` selects."""
        return Examples(self.latent[rows], self.tokens[rows], self.active[rows], self.marked[rows])


@dataclass(frozen=True)
class Split:
    """The explainer's half, the scorer's half, and for each latent why it has neither ('' when it has)."""

    explain: Examples
    score: Examples
    excluded: NDArray[np.str_]
    """[d_sae]: '' | dead | too_few_contexts | no_non_activating_contexts"""


def draw(
    fired: Firings,
    where: Windows,
    corpus: Int[NDArray[np.int32], " token"],
    collect: CollectConfig,
    config: AutointerpConfig,
    seed: int,
) -> Split:
    """Draw and split before anything is explained; no context of a latent is in both halves.

    Activating contexts come from strata of equal count by peak activation, half of each stratum to each side;
    non-activating ones at random without replacement.
    """
    each = config.examples // collect.quantiles
    rows, _, rank = by_quantile(where, collect.quantiles, each, seed)
    silent_latent, silent_window = non_activating(where, config.examples, seed)
    silent_rank = np.arange(len(silent_latent)) - np.searchsorted(silent_latent, silent_latent)
    excluded = _excluded(where, silent_latent, config)
    latent = np.concatenate([where.latent[rows], silent_latent])
    window = np.concatenate([where.window[rows], silent_window])
    everything = Examples(
        latent=latent,
        tokens=corpus.reshape(-1, where.length)[window],
        active=np.arange(len(latent)) < len(rows),
        marked=_marks(fired, where, rows, len(silent_latent), config.mark_threshold),
    )
    to_explainer = np.concatenate([rank, silent_rank]) % 2 == 0
    qualifies = excluded[latent] == ""
    return Split(everything.part(qualifies & to_explainer), everything.part(qualifies & ~to_explainer), excluded)


def _excluded(where: Windows, silent_latent: Ints, config: AutointerpConfig) -> NDArray[np.str_]:
    silent = np.bincount(silent_latent, minlength=len(where.count))
    conditions = [where.count == 0, where.count < config.min_contexts, silent < 2]
    return np.select(conditions, ["dead", "too_few_contexts", "no_non_activating_contexts"], "")


def _marks(
    fired: Firings, where: Windows, rows: Ints, silent: int, threshold: float
) -> Bool[NDArray[np.bool_], "example position"]:
    entries, offsets = entries_of(where, rows)
    row = np.repeat(np.arange(len(rows)), np.diff(offsets))
    marked = np.zeros((len(rows) + silent, where.length), dtype=bool)
    marked[row, fired.token[entries] % where.length] = fired.value[entries] >= threshold * where.peak[rows][row]
    return marked
