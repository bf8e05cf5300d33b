"""Bootstraps of votes and latents: as many replicates as a page can wait for, a reason where there is no interval."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from app.agreement import Statistic, bootstrap_auroc, bootstrap_raters_and_items, weighted_mean
from app.blind.outcomes import Estimated
from app.blind.votes import Vote
from app.stats import Estimate

MOST, FEWEST = 2000, 200
"""Replicates of a bootstrap."""
CELLS = 20_000_000
"""Replicates times labels, at most: about a second."""


def replicates_for(values: int, most: int = MOST) -> int:
    """Replicates for so many labels or latents."""
    return max(FEWEST, min(most, CELLS // max(1, values)))


def over_raters_and_pairs(
    votes: Sequence[Vote], values: ArrayLike, seed: int, statistic: Statistic = weighted_mean
) -> Estimated:
    """A statistic of one value a vote; raters and matched pairs, which is what was drawn, are drawn again."""
    raters, pairs = [vote.rater for vote in votes], [vote.pair for vote in votes]
    if max(len(set(raters)), len(set(pairs))) < 2:
        return Estimated(None, "The bootstrap needs labels of two raters or of two pairs.")
    return Estimated(
        bootstrap_raters_and_items(
            values,
            raters,
            pairs,
            statistic,
            rng=np.random.default_rng(seed),
            replicates=replicates_for(len(votes)),
        )
    )


def over_pairs(truth: ArrayLike, scores: ArrayLike, pairs: ArrayLike, seed: int) -> Estimate:
    """The AUROC of one score a latent; pairs of latents are drawn again. Raises as `stats.auroc`."""
    rng, replicates = np.random.default_rng(seed), replicates_for(np.size(scores), 1000)
    return bootstrap_auroc(truth, scores, pairs, rng=rng, replicates=replicates)
