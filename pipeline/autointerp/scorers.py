"""Scores of explanations: AUROC, balanced accuracy and their like over the scored contexts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipeline.autointerp.examples import Examples, random_marks

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rated:
    """What a scorer asks: for each example what the explanation gives to 'yes', a probability unless the scorer has
    none (then any number that is larger for 'yes'), and the truth.
    """

    latent: NDArray[np.int64]
    yes: Floats
    truth: NDArray[np.bool_]


def detection(examples: Examples, probabilities: Float[Floats, "example position"], _seed: int) -> Rated:
    """Does this context activate the latent? Yes as far as its likeliest token does."""
    return Rated(examples.latent, probabilities.max(axis=1), examples.active)


def fuzzing(examples: Examples, probabilities: Float[Floats, "example position"], seed: int) -> Rated:
    """Are the marked tokens the ones that activate it? Yes as far as they do on average.

    In activating contexts the truly active tokens are marked; in silent ones as many random tokens as in one of the
    latent's activating contexts.
    """
    marked = examples.marked | random_marks(examples, seed)
    yes = np.where(marked, probabilities, 0).sum(axis=1) / np.maximum(marked.sum(axis=1), 1)
    return Rated(examples.latent, yes, examples.active)


@dataclass(frozen=True)
class Scores:
    """One scorer's verdict on each latent that has examples; parallel arrays."""

    latent: NDArray[np.int64]
    auroc: Floats
    auprc: Floats
    balanced_accuracy: Floats
    f1: Floats
    """nan where nothing was called active."""
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]


def score(rated: Rated) -> Scores:
    """AUROC as the share of (positive, negative) pairs in the right order, ties half; average precision (AUPRC);
    balanced accuracy and F1 at 0.5.
    """
    latents, owner = np.unique(rated.latent, return_inverse=True)
    positives = np.bincount(owner, weights=rated.truth, minlength=len(latents))
    negatives = np.bincount(owner, minlength=len(latents)) - positives
    ranks = _midranks(owner, rated.yes)
    above = np.bincount(owner, weights=ranks * rated.truth, minlength=len(latents)) - positives * (positives + 1) / 2
    said_yes = rated.yes >= 0.5
    hits = np.bincount(owner, weights=said_yes & rated.truth, minlength=len(latents))
    rejections = np.bincount(owner, weights=~said_yes & ~rated.truth, minlength=len(latents))
    called = np.bincount(owner, weights=said_yes, minlength=len(latents))
    return Scores(
        latent=latents,
        auroc=above / (positives * negatives),
        auprc=_average_precision(owner, rated),
        balanced_accuracy=(hits / positives + rejections / negatives) / 2,
        f1=np.where(called > 0, 2 * hits / (called + positives), np.nan),
        positives=positives.astype(np.int64),
        negatives=negatives.astype(np.int64),
    )


def _average_precision(owner: NDArray[np.int64], rated: Rated) -> Floats:
    """Σ (recall_n − recall_{n−1}) · precision_n over the thresholds n at which an owner's values fall, each once."""
    order = np.lexsort((-rated.yes, owner))
    sorted_owner, truth = owner[order], rated.truth[order].astype(np.int64)
    fresh = _fresh(sorted_owner, rated.yes[order])
    group_owner = sorted_owner[fresh]
    end = np.append(np.flatnonzero(fresh), len(order))[1:] - 1
    first = np.searchsorted(sorted_owner, group_owner)  # the owner's first row
    upto = np.concatenate([[0], np.cumsum(truth)])
    precision = (upto[end + 1] - upto[first]) / (end + 1 - first)
    gained = np.add.reduceat(truth, np.flatnonzero(fresh)) if len(order) else truth
    total = np.bincount(owner, weights=rated.truth)
    return np.bincount(group_owner, weights=gained * precision) / total


def _fresh(owner: NDArray[np.int64], values: Floats) -> NDArray[np.bool_]:
    """Where a new owner or a new value begins, in sorted rows."""
    return np.asarray(np.diff(owner, prepend=-1).astype(bool) | np.diff(values, prepend=np.nan).astype(bool))


def _midranks(owner: NDArray[np.int64], values: Floats) -> Floats:
    """Rank of each value within its owner's, from 1; equal values share the mean of their ranks."""
    order = np.lexsort((values, owner))
    sorted_owner, sorted_values = owner[order], values[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_owner, sorted_owner) + 1
    group = np.cumsum(_fresh(sorted_owner, sorted_values)) - 1
    mean = np.bincount(group, weights=place) / np.bincount(group)
    ranks = np.empty(len(order))
    ranks[order] = mean[group]
    return ranks
