"""Draws what explainer and scorers see of each latent, from two halves of its contexts: split first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from pipeline.config import AutointerpConfig, CollectConfig, Pool
from pipeline.latents.collect import (
    Firings,
    Floats,
    Ints,
    Windows,
    by_quantile,
    entries_of,
    non_activating,
    rank_within,
    shuffle_within,
)
from pipeline.seeds import numpy_generator

FEWEST_NEGATIVES = 10
"""An AUROC against fewer contexts (or against less than all, where fewer are asked for) is no score."""


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
    """What is shown to the explainer and what is scored, from each pool; and for each latent why it has neither."""

    explain: Mapping[Pool, Examples]
    score: Mapping[Pool, Examples]
    excluded: NDArray[np.str_]
    """[d_sae]: '' | dead | too_few_contexts | too_few_non_activating_contexts"""

    def of(self, latents: Ints, first: int) -> "Split":
        """Of those of these latents (ascending) that are here, numbered by their places among all of them; `first` is
        the number of this split's first latent.
        """
        own = latents[(latents >= first) & (latents < first + len(self.excluded))]
        return Split(
            explain={pool: examples.of(latents, first) for pool, examples in self.explain.items()},
            score={pool: examples.of(latents, first) for pool, examples in self.score.items()},
            excluded=self.excluded[own - first],
        )

    @staticmethod
    def joined(parts: "Sequence[Split]") -> "Split":
        """One after another."""
        return Split(
            explain={pool: Examples.joined([part.explain[pool] for part in parts]) for pool in parts[0].explain},
            score={pool: Examples.joined([part.score[pool] for part in parts]) for pool in parts[0].score},
            excluded=np.concatenate([part.excluded for part in parts]),
        )


@dataclass(frozen=True)
class Protocol:
    """How examples are drawn. `documents` says of each window of the corpus in which half its document lies; None
    where the windows of each latent are split instead.
    """

    explain_from: Sequence[Pool]
    score_on: Sequence[Pool]
    examples: int
    min_contexts: int
    quantiles: int
    mark_threshold: float
    documents: Bool[NDArray[np.bool_], " window"] | None = None

    @staticmethod
    def of(config: AutointerpConfig, collect: CollectConfig, halves: Callable[[int], NDArray[np.bool_]]) -> "Protocol":
        """The one that a study file asks for; `halves` is the corpus' own."""
        return Protocol(
            explain_from=config.explain_from,
            score_on=config.score_on,
            examples=config.examples,
            min_contexts=config.min_contexts,
            quantiles=collect.quantiles,
            mark_threshold=config.mark_threshold,
            documents=halves(collect.window) if config.split_by == "document" else None,
        )


def draw(
    fired: Firings, where: Windows, corpus: Int[NDArray[np.int32], " token"], protocol: Protocol, seed: int
) -> Split:
    """Split first, then draw: the explainer's examples from one half of a latent's contexts, what is scored from the
    other, so that no context is in both. Non-activating contexts are drawn without replacement, as many as activating
    ones, and split likewise.
    """
    half = protocol.examples // 2
    second = _second_half(where, protocol, seed)
    silent = _silent_halves(where, protocol, seed)
    excluded = _excluded(where, second, [latent for latent, _ in silent], protocol)

    def drawn(part: int, pool: Pool) -> Examples:
        own = np.flatnonzero(second == bool(part))
        generator = numpy_generator(seed, "halves", part, pool)
        rows = np.sort(own[POOLS[pool](where.latent[own], where.peak[own], half, protocol.quantiles, generator)])
        return _examples(fired, where, rows, *silent[part], corpus, protocol.mark_threshold, excluded)

    return Split(
        explain={pool: drawn(0, pool) for pool in protocol.explain_from},
        score={pool: drawn(1, pool) for pool in protocol.score_on},
        excluded=excluded,
    )


def _strongest(latent: Ints, peak: Floats, count: int, _quantiles: int, _generator: np.random.Generator) -> Ints:
    order, rank = rank_within(latent, -peak)
    return order[rank < count]


def _quantiles(latent: Ints, peak: Floats, count: int, quantiles: int, generator: np.random.Generator) -> Ints:
    return by_quantile(latent, peak, quantiles, count // quantiles, generator)[0]


def _random(latent: Ints, _peak: Floats, count: int, _quantiles: int, generator: np.random.Generator) -> Ints:
    order, place = shuffle_within(latent, generator)
    return order[place < count]


POOLS: dict[Pool, Callable[[Ints, Floats, int, int, np.random.Generator], Ints]] = {
    "strongest": _strongest,
    "quantiles": _quantiles,
    "random": _random,
}
"""From the latent and the peak of each context: the rows of so many contexts of every latent."""


def _second_half(where: Windows, protocol: Protocol, seed: int) -> NDArray[np.bool_]:
    """Of each latent's windows, which are kept from the explainer."""
    if protocol.documents is not None:
        return protocol.documents[where.window]
    shuffled, place = shuffle_within(where.latent, numpy_generator(seed, "halves"))
    second = np.zeros(len(where.latent), dtype=bool)
    second[shuffled] = place % 2 == 1
    return second


def _silent_halves(where: Windows, protocol: Protocol, seed: int) -> list[tuple[Ints, Ints]]:
    """Latents and windows of the non-activating contexts of either half."""
    if protocol.documents is not None:
        halves = [np.flatnonzero(protocol.documents == part) for part in (False, True)]
        return [non_activating(where, protocol.examples // 2, seed, among) for among in halves]
    latent, window = non_activating(where, protocol.examples, seed)
    odd = (np.arange(len(latent)) - np.searchsorted(latent, latent)) % 2 == 1
    return [(latent[part], window[part]) for part in (~odd, odd)]


def _excluded(
    where: Windows, second: NDArray[np.bool_], silent: Sequence[Ints], protocol: Protocol
) -> NDArray[np.str_]:
    latents = len(where.count)
    fewest = np.minimum(*(np.bincount(where.latent[second == part], minlength=latents) for part in (False, True)))
    fewest_silent = np.minimum(*(np.bincount(latent, minlength=latents) for latent in silent))
    conditions = [
        where.count == 0,
        (where.count < protocol.min_contexts) | (fewest < protocol.examples // 2),
        fewest_silent < min(FEWEST_NEGATIVES, protocol.examples // 2),
    ]
    return np.select(conditions, ["dead", "too_few_contexts", "too_few_non_activating_contexts"], "")


def _examples(
    fired: Firings,
    where: Windows,
    rows: Ints,
    silent_latent: Ints,
    silent_window: Ints,
    corpus: Int[NDArray[np.int32], " token"],
    threshold: float,
    excluded: NDArray[np.str_],
) -> Examples:
    """The contexts of `rows` and the silent ones, of the latents that qualify."""
    latent = np.concatenate([where.latent[rows], silent_latent])
    activation, marked = _activity(fired, where, rows, len(silent_latent), threshold)
    window = np.concatenate([where.window[rows], silent_window])
    everything = Examples(
        latent=latent,
        tokens=corpus.reshape(-1, where.length)[window],
        active=np.arange(len(latent)) < len(rows),
        marked=marked,
        activation=activation,
    )
    return everything.part(excluded[latent] == "")


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


@dataclass(frozen=True)
class Asked:
    """Contexts to be judged, a row each."""

    latent: Int[NDArray[np.int64], " example"]
    tokens: Int[NDArray[np.int32], "example position"]
    marked: Bool[NDArray[np.bool_], "example position"]
    """Marks that are shown; none of them says anything about the truth where only the text is asked about."""
    truth: Bool[NDArray[np.bool_], " example"]
    turn: Int[NDArray[np.int64], " example"]
    """Contexts of different turns never share a prompt."""

    def rows_of(self, latent: int) -> NDArray[np.int64]:
        """Places of one latent's contexts."""
        return np.flatnonzero(self.latent == latent)


def ask_detection(examples: Examples, _seed: int) -> Asked:
    """Is the latent active in this context?"""
    return _asked(examples, np.zeros_like(examples.marked))


def ask_fuzzing(examples: Examples, seed: int) -> Asked:
    """Are the marked tokens the ones that activate it? Silent contexts bear as many random marks as active ones."""
    return _asked(examples, examples.marked | random_marks(examples, seed))


def ask_fuzzing_hard(examples: Examples, seed: int) -> Asked:
    """The same on activating contexts alone, each shown twice: with its marks, and with as many on silent tokens.

    The two never share a prompt, so no answer can be had by comparing them. A context without a silent token is shown
    with its marks only.
    """
    active = examples.part(examples.active)
    draws = np.random.default_rng(seed).random(active.tokens.shape)
    draws[active.activation > 0] = 2  # last in line
    number = np.minimum(active.marked.sum(axis=1), (active.activation == 0).sum(axis=1))
    wrong = draws.argsort(axis=1).argsort(axis=1) < number[:, None]
    some = number > 0
    right_first = np.arange(len(number)) % 2
    return Asked(
        latent=np.concatenate([active.latent, active.latent[some]]),
        tokens=np.concatenate([active.tokens, active.tokens[some]]),
        marked=np.concatenate([active.marked, wrong[some]]),
        truth=np.arange(len(number) + int(some.sum())) < len(number),
        turn=np.concatenate([right_first, 1 - right_first[some]]),
    )


def _asked(examples: Examples, marked: NDArray[np.bool_]) -> Asked:
    return Asked(examples.latent, examples.tokens, marked, examples.active, np.zeros(len(examples.latent), np.int64))


def random_marks(examples: Examples, seed: int) -> Bool[NDArray[np.bool_], "example position"]:
    """Random marks for the silent examples, each with as many as one of the latent's activating examples has."""
    silent, active = np.flatnonzero(~examples.active), np.flatnonzero(examples.active)
    active = active[np.argsort(examples.latent[active], kind="stable")]
    owners = examples.latent[active]
    begin = np.searchsorted(owners, examples.latent[silent])
    size = np.searchsorted(owners, examples.latent[silent], side="right") - begin
    turn = np.arange(len(silent)) - np.searchsorted(examples.latent[silent], examples.latent[silent])
    number = examples.marked[active[begin + turn % size]].sum(axis=1)
    draws = np.random.default_rng(seed).random((len(silent), examples.tokens.shape[1]))
    marks = np.zeros_like(examples.marked)
    marks[silent] = draws.argsort(axis=1).argsort(axis=1) < number[:, None]
    return marks
