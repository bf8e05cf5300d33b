"""What a row of the table of variants is: a name with its parameter comes in, the row for it goes out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.errors import LineupError
from pipeline.models.anatomy import Anatomy
from pipeline.variants.noise import Moments
from pipeline.variants.randomise import Gain, Randomise


@dataclass(frozen=True)
class Variant:
    """One row of the table: what a variant is called and what is done to the trained model."""

    name: str
    label: str
    description: str
    is_trained: bool = False
    random: bool = True
    """Whether another seed makes another model."""
    randomise: Randomise | None = None
    gain: Gain | None = None
    """What is done to the tensors afterwards, kept norms among them."""
    noise_moments: Callable[[nn.Module], Moments] | None = None
    """Mean and standard deviation of the noise that replaces the token embedding's output, where it is replaced."""
    revision: str | None = None
    """The published checkpoint that takes the trained weights' place."""
    is_fresh: bool = False
    """Whether it starts from a fresh initialisation in place of the trained weights."""
    needs: Callable[[Anatomy], object] | None = None
    """Looks for what the variant needs of a model. Raises LineupError when it is not there."""

    @property
    def noise(self) -> bool:
        """Whether the token embeddings are replaced by noise while the model runs."""
        return self.noise_moments is not None


@dataclass(frozen=True)
class Family:
    """A row with a parameter: `scale:<s>` stands for scale:0.5, scale:2 and so on.

    Its members draw from the same generators, named after the family: scale:2 has the numbers of scale:0.5, four times
    as wide, so that along a sweep the parameter differs and not the draw.
    """

    name: str
    label_of: str
    """With {} for the parameter."""
    description_of: str
    """With {} for the parameter in words."""
    allowed: str
    read: Callable[[str], Any]
    """The parameter from its text. Raises ValueError or KeyError for what is not allowed."""
    member: Callable[[Variant, Any], Variant]
    """The row of one parameter, from one that does nothing yet."""
    words: Callable[[str], str] = str

    @property
    def label(self) -> str:
        """What the members have in common."""
        return self.label_of.format(self._parameter)

    @property
    def description(self) -> str:
        """The same in a sentence, and how to write one."""
        return f"{self.description_of.format(self._parameter)} Write {self.name} with {self.allowed}."

    @property
    def _parameter(self) -> str:
        return self.name.partition(":")[2]

    def variant(self, text: str) -> Variant:
        """The row of one parameter. Raises LineupError for what is not allowed."""
        stem = self.name.partition(":")[0]
        try:
            value = self.read(text)
        except (ValueError, KeyError):
            found = f"'{stem}:{text}'" if text else f"'{stem}' without a value"
            raise LineupError(f"Unknown variant {found}: write {self.name} with {self.allowed}.") from None
        label = self.label_of.format(text.replace("_", " "))
        return self.member(Variant(f"{stem}:{text}", label, self.description_of.format(self.words(text))), value)


MOST = 1e30
"""Largest factor: weights times this are numbers that float32 still holds."""


def positive(text: str) -> float:
    """A number above 0, at most `MOST`. Raises ValueError."""
    value = float(text)
    if not 0 < value <= MOST:
        raise ValueError(text)
    return value


def layer_number(text: str) -> int:
    """A whole number from 0. Raises ValueError."""
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)
