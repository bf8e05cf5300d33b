"""How well each statistic alone, and a logistic regression on all of them, tells the analysed latents apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# `agreement.logistic_cv` refuses groups of both classes, which is what matched pairs are. Without groups a latent's
# partner in the training folds has its density and the other class: simulated latents that cannot be told apart then
# have an AUROC of .39 to .49.
from app.agreement import deal_folds, logistic_scores
from app.blind.design import Design
from app.blind.outcomes import MetricOutcome
from app.blind.records import Item
from app.blind.resample import over_pairs
from app.blind.votes import Vote

FEWEST_LATENTS = 5
"""Latents of each kind with a value, without which no AUROC is told."""
FEWEST_FITTED = 10
"""Latents of each kind, without which no regression is fitted."""
FOLDS = 5
RIDGE = 1.0
LOGISTIC = "logistic regression"


@dataclass(frozen=True)
class Latents:
    """The latents that votes are about, each once: pair, whether it is trained, statistics [latents, names] or nan."""

    pairs: NDArray[np.intp]
    trained: NDArray[np.bool_]
    names: tuple[str, ...]
    statistics: NDArray[np.float64]


def shown_latents(votes: Sequence[Vote], items: Sequence[Item], design: Design) -> Latents:
    """Gather them; latents of practice and of trials without a vote are not among them."""
    numbers = {vote.left for vote in votes} | {vote.right for vote in votes}
    shown = [item for item in items if item.item in numbers]
    names = tuple(sorted({name for item in shown for name in item.statistics}))
    return Latents(
        np.array([item.pair for item in shown], dtype=np.intp),
        np.array([item.variant not in design.variants for item in shown], dtype=bool),
        names,
        np.array([[_value(item, name) for name in names] for item in shown]).reshape(len(shown), len(names)),
    )


def _value(item: Item, name: str) -> float:
    value = item.statistics.get(name)
    return math.nan if value is None or not math.isfinite(value) else value


def metric_outcomes(latents: Latents, seed: int) -> tuple[MetricOutcome, ...]:
    """The AUROC of each statistic alone; the most telling first, those without one last."""
    outcomes = [
        _outcome(name, latents, latents.statistics[:, at], FEWEST_LATENTS, seed)
        for at, name in enumerate(latents.names)
    ]
    return tuple(sorted(outcomes, key=lambda outcome: (outcome.distance is None, -(outcome.distance or 0.0))))


def logistic_outcome(latents: Latents, seed: int) -> MetricOutcome:
    """The AUROC of probabilities from a ridge regression on all statistics; its interval is given the fits."""
    scores = np.zeros(len(latents.pairs))
    if not latents.names and len(scores):
        return MetricOutcome(LOGISTIC, None, None, *_both(latents.trained), "The latents have no statistics.")
    if min(_both(latents.trained)) >= FEWEST_FITTED:
        scores = out_of_fold(latents, np.random.default_rng(seed))
    return _outcome(LOGISTIC, latents, scores, FEWEST_FITTED, seed)


def out_of_fold(latents: Latents, rng: np.random.Generator) -> NDArray[np.float64]:
    """Probability of "trained" for each latent, by a regression on the other folds; pairs stay in one fold."""
    return logistic_scores(latents.statistics, latents.trained, _folds(latents, rng), RIDGE)


def _folds(latents: Latents, rng: np.random.Generator) -> NDArray[np.intp]:
    return deal_folds(latents.trained, latents.pairs, FOLDS, rng)


def _both(trained: NDArray[np.bool_]) -> tuple[int, int]:
    return int(trained.sum()), int((~trained).sum())


def _outcome(name: str, latents: Latents, scores: NDArray[np.float64], fewest: int, seed: int) -> MetricOutcome:
    known = np.isfinite(scores)
    trained, random = _both(latents.trained[known])
    if min(trained, random) < fewest:
        reason = f"{trained} trained and {random} random latents have a value; {fewest} of each are needed."
        return MetricOutcome(name, None, None, trained, random, reason)
    estimate = over_pairs(latents.trained[known], scores[known], latents.pairs[known], seed)
    return MetricOutcome(name, estimate, abs(estimate.value - 0.5), trained, random)
