"""Draws what explainer and scorer see of each latent: firings come in, two halves of examples go out, split first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from pipeline.config import AutointerpConfig, CollectConfig
from pipeline.latents.collect import (
    Firings,
    Ints,
    Windows,
    by_quantile,
    entries_of,
    non_activating,
    rank_within,
    shuffle_within,
)
from pipeline.seeds import numpy_generator


@dataclass(frozen=True)
class Examples:
    """Contexts of many latents, a row each: activating ones with their marks, non-activating ones without."""

    latent: Int[NDArray[np.int64], " example"]
    tokens: Int[NDArray[np.int32], "example position"]
    active: Bool[NDArray[np.bool_], " example"]
    marked: Bool[NDArray[np.bool_], "example position"]
    """Tokens whose activation reaches the threshold's share of the context's peak."""
    activation: Float[NDArray[np.float32], "example position"]
    """The latent's activation on each token, 0 where it is silent."""

    def part(self, rows: NDArray[np.bool_]) -> "Examples":
        """The examples that `rows` selects."""
        return Examples(*(column[rows] for column in self._columns()))

    def of(self, latents: Ints, first: int) -> "Examples":
        """The examples of these latents (ascending), by their places among them; `first` is the number of latent 0."""
        kept = self.part(np.isin(self.latent + first, latents))
        return replace(kept, latent=np.searchsorted(latents, kept.latent + first))

    def with_both(self) -> "Examples":
        """Those of latents that have activating and non-activating ones."""
        both = np.isin(self.latent, self.latent[self.active]) & np.isin(self.latent, self.latent[~self.active])
        return self.part(both)

    @staticmethod
    def joined(parts: "Sequence[Examples]") -> "Examples":
        """One after another."""
        return Examples(*(np.concatenate(c) for c in zip(*(part._columns() for part in parts), strict=True)))

    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self.latent, self.tokens, self.active, self.marked, self.activation


@dataclass(frozen=True)
class Split:
    """The explainer's half, what is scored, and for each latent why it has neither ('' when it has)."""

    explain: Examples
    """Half of the strongest contexts: what a person or a program is usually shown."""
    strongest: Examples
    """The other half of them."""
    quantiles: Examples
    """Contexts from strata of equal count over the whole range of activations, none of them shown to the explainer."""
    excluded: NDArray[np.str_]
    """[d_sae]: '' | dead | too_few_contexts | no_non_activating_contexts"""

    def of(self, latents: Ints, first: int) -> "Split":
        """Of those of these latents (ascending) that are here, numbered by their places among all of them; `first` is
        the number of this split's first latent.
        """
        own = latents[(latents >= first) & (latents < first + len(self.excluded))]
        return Split(
            explain=self.explain.of(latents, first),
            strongest=self.strongest.of(latents, first),
            quantiles=self.quantiles.of(latents, first),
            excluded=self.excluded[own - first],
        )


def draw(
    fired: Firings,
    where: Windows,
    corpus: Int[NDArray[np.int32], " token"],
    collect: CollectConfig,
    config: AutointerpConfig,
    seed: int,
) -> Split:
    """Draw and split before anything is explained; no context of a latent is both explained and scored.

    Non-activating contexts are drawn at random without replacement; both scored sets have the same ones.
    """
    order, rank = rank_within(where.latent, -where.peak)
    strongest = np.sort(order[rank < config.examples])
    shuffled, place = shuffle_within(where.latent[strongest], numpy_generator(seed, "halves"))
    explained, scored = strongest[shuffled[place % 2 == 0]], strongest[shuffled[place % 2 == 1]]
    spread, _, _ = by_quantile(where, collect.quantiles, config.examples // 2 // collect.quantiles, seed)
    silent_latent, silent_window = non_activating(where, config.examples, seed)
    excluded = _excluded(where, silent_latent, config)
    odd = (np.arange(len(silent_latent)) - np.searchsorted(silent_latent, silent_latent)) % 2 == 1

    def examples(rows: Ints, silent: NDArray[np.bool_]) -> Examples:
        latent = np.concatenate([where.latent[rows], silent_latent[silent]])
        activation, marked = _activity(fired, where, rows, int(silent.sum()), config.mark_threshold)
        window = np.concatenate([where.window[rows], silent_window[silent]])
        everything = Examples(
            latent=latent,
            tokens=corpus.reshape(-1, where.length)[window],
            active=np.arange(len(latent)) < len(rows),
            marked=marked,
            activation=activation,
        )
        return everything.part(excluded[latent] == "")

    unseen = np.setdiff1d(spread, explained)
    return Split(examples(explained, ~odd), examples(scored, odd), examples(unseen, odd), excluded)


def _excluded(where: Windows, silent_latent: Ints, config: AutointerpConfig) -> NDArray[np.str_]:
    silent = np.bincount(silent_latent, minlength=len(where.count))
    conditions = [where.count == 0, where.count < config.min_contexts, silent < 2]
    return np.select(conditions, ["dead", "too_few_contexts", "no_non_activating_contexts"], "")


def _activity(
    fired: Firings, where: Windows, rows: Ints, silent: int, threshold: float
) -> tuple[Float[NDArray[np.float32], "example position"], Bool[NDArray[np.bool_], "example position"]]:
    """Activations and marks in the contexts of `rows`, then `silent` contexts without any."""
    entries, offsets = entries_of(where, rows)
    row = np.repeat(np.arange(len(rows)), np.diff(offsets))
    place, value = fired.token[entries] % where.length, fired.value[entries]
    marked = np.zeros((len(rows) + silent, where.length), dtype=bool)
    marked[row, place] = value >= threshold * where.peak[rows][row]
    activation = np.zeros(marked.shape, dtype=np.float32)
    activation[row, place] = value
    return activation, marked
