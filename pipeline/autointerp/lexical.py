"""The explainer that needs no language model: the tokens and n-grams on which each latent fires."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from pipeline.autointerp.examples import Examples
from pipeline.latents.collect import Ints, rank_within

ORDERS = 3
"""Longest n-gram: a token and the two before it."""
RULES = 16
"""Rules kept for a latent: the explanation is these and nothing else."""

MIN_GAIN = 0.1
"""Nats of log-likelihood that a rule must be worth on the explainer's examples."""


@dataclass(frozen=True)
class Level:
    """The n-grams of one length, a row each; a longer one hangs on the shorter one that it extends backwards."""

    key: Ints
    """parent's row · (vocabulary + 1) + (token + 1), ascending; the parents of the first level are latents"""
    latent: Ints
    seen: Ints
    """Times in the examples."""
    marked: Ints
    """Times marked in them."""
    probability: Float[NDArray[np.float64], " ngram"]
    """That it is marked: its counts, smoothed by one example's worth of its parent's probability."""
    kept: NDArray[np.bool_]
    """Whether it is one of its latent's rules."""


@dataclass(frozen=True)
class Lexicon:
    """The rules of all latents of an SAE."""

    levels: tuple[Level, ...]
    base: int
    """vocabulary + 1"""
    prior: Float[NDArray[np.float64], " latent"]
    """Share of marked tokens among all that the explainer saw."""

    def probabilities(self, examples: Examples) -> Float[NDArray[np.float64], "example position"]:
        """The probability that the latent fires on each token: the longest rule that matches, else the prior."""
        found = np.repeat(self.prior[examples.latent], examples.tokens.shape[1])
        parent = np.repeat(examples.latent, examples.tokens.shape[1])
        place = np.arange(len(found))
        for level, token in zip(self.levels, _backwards(examples.tokens), strict=True):
            row = _look_up(level.key, parent, token[place], self.base)
            place, parent = place[row >= 0], row[row >= 0]
            rule = level.kept[parent]
            found[place[rule]] = level.probability[parent[rule]]
        return found.reshape(examples.tokens.shape)


def learn(examples: Examples, d_sae: int, vocabulary: int) -> Lexicon:
    """Learn every latent's rules: a back-off n-gram model of 'this token is marked', cut to the most telling n-grams.

    An n-gram's worth is the log-likelihood that its own probability gains over its parent's on the examples. Only
    tokens that are marked somewhere become rules, and only they are looked at with the tokens before them.
    """
    base = vocabulary + 1
    marked = examples.marked.ravel()
    parent = np.repeat(examples.latent, examples.tokens.shape[1])
    totals = np.bincount(parent, minlength=d_sae)
    prior = (np.bincount(parent, weights=marked, minlength=d_sae) + 0.5) / (totals + 1)
    above, owner = prior, np.arange(d_sae)
    place = np.arange(len(parent))
    counted: list[tuple[Ints, Ints, Ints, Ints, NDArray[np.float64]]] = []
    gains: list[Any] = []
    for token in _backwards(examples.tokens):
        key, row = np.unique(parent * base + token[place], return_inverse=True)
        seen = np.bincount(row, minlength=len(key))
        hits = np.bincount(row, weights=marked[place], minlength=len(key))
        parents, owner = above[key // base], owner[key // base]
        probability = (hits + parents) / (seen + 1)
        gain = hits * np.log(probability / parents) + (seen - hits) * np.log((1 - probability) / (1 - parents))
        gains.append(gain if counted else np.where(hits > 0, gain, 0))
        counted.append((key, owner, seen, hits.astype(np.int64), probability))
        goes_on = hits[row] > 0
        parent, above, place = row[goes_on], probability, place[goes_on]
    kept = _best(np.concatenate([c[1] for c in counted]), np.concatenate(gains))
    bounds = np.cumsum([len(c[0]) for c in counted])[:-1]
    levels = tuple(Level(*c, k) for c, k in zip(counted, np.split(kept, bounds), strict=True))
    return Lexicon(_pruned(levels, base), base, prior)


def _pruned(levels: Sequence[Level], base: int) -> tuple[Level, ...]:
    """Without the n-grams that are no rule and lead to none: a hundredth is left, which is all that is looked up."""
    needed = [level.kept.copy() for level in levels]
    for number in range(len(levels) - 1, 0, -1):
        needed[number - 1][levels[number].key[needed[number]] // base] = True
    found: list[Level] = []
    for number, (level, rows) in enumerate(zip(levels, needed, strict=True)):
        key = level.key[rows]
        if number:
            key = (np.cumsum(needed[number - 1]) - 1)[key // base] * base + key % base
        seen, marked = level.seen[rows], level.marked[rows]
        found.append(Level(key, level.latent[rows], seen, marked, level.probability[rows], level.kept[rows]))
    return tuple(found)


def _best(latent: Ints, gain: Float[NDArray[np.float64], " ngram"]) -> NDArray[np.bool_]:
    telling = np.flatnonzero(gain > MIN_GAIN)
    order, rank = rank_within(latent[telling], -gain[telling])
    kept = np.zeros(len(latent), dtype=bool)
    kept[telling[order[rank < RULES]]] = True
    return kept


def _backwards(tokens: Int[NDArray[np.int32], "example position"]) -> list[Ints]:
    """For each place, flattened: its token, the one before, the one before that, plus one; 0 before the context."""
    padded = np.pad(tokens.astype(np.int64) + 1, ((0, 0), (ORDERS - 1, 0)))
    length = tokens.shape[1]
    return [padded[:, ORDERS - 1 - back : ORDERS - 1 - back + length].ravel() for back in range(ORDERS)]


def _look_up(keys: Ints, parent: Ints, token: Ints, base: int) -> Ints:
    """Rows of the n-grams, −1 where there is none."""
    wanted = parent * base + token
    if not len(keys):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


@dataclass(frozen=True)
class Rule:
    """Tokens in reading order, times marked, times seen, probability of being marked."""

    tokens: tuple[int, ...]
    marked: int
    seen: int
    probability: float


def rules(lexicon: Lexicon) -> dict[int, list[Rule]]:
    """Every latent's rules, the likeliest and most frequent first."""
    found: dict[int, list[Rule]] = {}
    tokens: list[tuple[int, ...]] = []
    for number, level in enumerate(lexicon.levels):
        rows = np.flatnonzero(level.kept)
        tokens = [_ngram(lexicon, number, row) for row in rows.tolist()]
        facts = zip(tokens, level.marked[rows], level.seen[rows], level.probability[rows], strict=True)
        for latent, (ngram, marked, seen, probability) in zip(level.latent[rows].tolist(), facts, strict=True):
            found.setdefault(latent, []).append(Rule(ngram, int(marked), int(seen), round(float(probability), 4)))
    for own in found.values():
        own.sort(key=lambda rule: (-rule.probability * rule.marked, rule.tokens))
    return found


def _ngram(lexicon: Lexicon, number: int, row: int) -> tuple[int, ...]:
    tokens = []
    for level in reversed(lexicon.levels[: number + 1]):
        key = int(level.key[row])
        tokens.append(key % lexicon.base - 1)
        row = key // lexicon.base
    return tuple(tokens)


def text(own: Sequence[Rule], vocabulary: Sequence[str]) -> str:
    """The rules as a line for people; those that speak against firing are left to the JSON."""
    for_firing = [rule for rule in own if rule.marked and rule.probability >= 0.3][:6]
    if not for_firing:
        return "no token or n-gram stands out"
    parts = (f"“{_words(rule.tokens, vocabulary)}” ({rule.marked} of {rule.seen})" for rule in for_firing)
    return "fires on " + ", ".join(parts)


def _words(tokens: Sequence[int], vocabulary: Sequence[str]) -> str:
    return "".join(vocabulary[token] if token >= 0 else "⊢" for token in tokens)


def as_json(own: Sequence[Rule]) -> str:
    """The rules for programs."""
    return json.dumps(
        [{"tokens": r.tokens, "marked": r.marked, "seen": r.seen, "probability": r.probability} for r in own],
        separators=(",", ":"),
    )
