"""Contexts about which a language model is asked, with the true answers."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from pipeline.autointerp.examples import Examples
from pipeline.autointerp.scorers import random_marks


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
