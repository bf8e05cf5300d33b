"""The table `VARIANTS`: what each does to which tensors, and how a name such as `scale:0.5` becomes a row."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter, methodcaller
from typing import Any

from torch import nn

from core.errors import UserError
from pipeline.models.anatomy import Anatomy
from pipeline.variants import randomise
from pipeline.variants.initialise import SCHEMES, initialise
from pipeline.variants.randomise import (
    DISTRIBUTIONS,
    Gain,
    Moments,
    Randomise,
    matched,
    standard,
)


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
    """Looks for what the variant needs of a model. Raises UserError when it is not there."""

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
        """The row of one parameter. Raises UserError for what is not allowed."""
        stem = self.name.partition(":")[0]
        try:
            value = self.read(text)
        except (ValueError, KeyError):
            found = f"'{stem}:{text}'" if text else f"'{stem}' without a value"
            raise UserError(f"Unknown variant {found}: write {self.name} with {self.allowed}.") from None
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


_REDRAWN = "redrawn IID from a Gaussian with that tensor's own mean and standard deviation"


VARIANTS: dict[str, Variant | Family] = {
    row.name: row
    for row in (
        Variant(
            "trained",
            "Trained",
            "The released weights.",
            is_trained=True,
            random=False,
        ),
        Variant(
            "rerandomized_incl_embeddings",
            "Re-randomised, incl. embeddings",
            f"Every weight tensor {_REDRAWN}.",
            randomise=randomise.redraw_all,
        ),
        Variant(
            "rerandomized_excl_embeddings",
            "Re-randomised, excl. embeddings",
            f"Every weight tensor but embedding and unembedding {_REDRAWN}.",
            randomise=randomise.redraw_blocks,
        ),
        Variant(
            "step0",
            "Step 0",
            "The published checkpoint from before the first training step (revision step0 on the Hub, as Pythia has).",
            random=False,
            revision="step0",
        ),
        Variant(
            "control",
            "Control",
            "The released weights, but each token's input embedding is replaced by fresh IID N(0, 1) noise at every"
            " occurrence: the model sees no text.",
            noise_moments=standard,
        ),
        Variant(
            "control_matched",
            "Control, matched",
            "The released weights, but each token's input embedding is replaced by fresh IID Gaussian noise at every"
            " occurrence, with the mean and standard deviation of the trained embeddings as they enter the first"
            " block: the model sees no text.",
            noise_moments=matched,
        ),
        Family(
            "init:<scheme>",
            "Fresh initialisation, {}",
            "A fresh initialisation, not a published one: {}.",
            f"one of {', '.join(SCHEMES)}",
            SCHEMES.__getitem__,
            lambda row, scheme: replace(
                row,
                randomise=partial(initialise, scheme),
                is_fresh=True,
                needs=None if scheme.std is None else attrgetter("projections"),
            ),
            lambda name: SCHEMES[name].words,
        ),
        Family(
            "scale:<s>",
            "Re-randomised, std × {}",
            "Every weight tensor redrawn IID from a Gaussian with that tensor's own mean and {} times its standard"
            " deviation.",
            "a number above 0 and at most 1e30",
            positive,
            lambda row, factor: replace(row, randomise=partial(randomise.redraw_scaled, factor)),
        ),
        Family(
            "embedding_gain:<s>",
            "Re-randomised, embedding × {}",
            f"Every weight tensor {_REDRAWN}; then what is looked up and enters the residual stream, token and"
            " position embeddings, is multiplied by {}. Where the unembedding is tied it is the same tensor.",
            "a number above 0 and at most 1e30",
            positive,
            lambda row, factor: replace(
                row, randomise=randomise.redraw_all, gain=partial(randomise.embedding_gain, factor)
            ),
        ),
        Family(
            "residual_gain:<s>",
            "Re-randomised, branches × {}",
            f"Every weight tensor {_REDRAWN}; then the weights that write to the residual stream, the output"
            " projections of attention and MLP, are multiplied by {} (where a norm follows them, as in Gemma 3, that"
            " norm's gain, kept norms too).",
            "a number above 0 and at most 1e30",
            positive,
            lambda row, factor: replace(
                row,
                randomise=randomise.redraw_all,
                gain=partial(randomise.residual_gain, factor),
                needs=attrgetter("projections"),
            ),
        ),
        Family(
            "distribution:<d>",
            "Re-randomised, {}",
            "Every weight tensor redrawn at its own scale from another distribution: {}.",
            f"one of {', '.join(DISTRIBUTIONS)}",
            DISTRIBUTIONS.__getitem__,
            lambda row, chosen: replace(row, randomise=chosen[1]),
            lambda name: DISTRIBUTIONS[name][0],
        ),
        Variant(
            "permuted",
            "Permuted",
            "Every tensor's trained entries, shuffled.",
            randomise=randomise.shuffle,
        ),
        Variant(
            "attention_only",
            "Only attention re-randomised",
            f"Every weight tensor of the attention modules {_REDRAWN}; all else as it was trained.",
            randomise=randomise.redraw_attention,
            needs=methodcaller("branch", "attention"),
        ),
        Variant(
            "mlp_only",
            "Only MLPs re-randomised",
            f"Every weight tensor of the MLPs {_REDRAWN}; all else as it was trained.",
            randomise=randomise.redraw_mlp,
            needs=methodcaller("branch", "MLP"),
        ),
        Family(
            "layers_from:<l>",
            "Re-randomised from layer {}",
            f"Every weight tensor of the blocks from layer {{}} on {_REDRAWN}; all else as it was trained.",
            "a layer, counted from 0",
            layer_number,
            lambda row, first: replace(
                row, randomise=partial(randomise.redraw_from, first), needs=partial(randomise.needs_layer, first)
            ),
        ),
        Variant(
            "random_embeddings",
            "Random embeddings",
            f"The token embedding {_REDRAWN}: random, but the same at every occurrence; all else as it was trained"
            " (a tied unembedding is the same tensor).",
            randomise=randomise.redraw_tokens,
        ),
    )
}
"""The variants in the order in which they are listed. A new one is a row here and, perhaps, a function."""


def find_variant(name: str) -> Variant:
    """The row of that name, parameter included, such as `scale:0.5`. Raises UserError for what the table lacks."""
    row = VARIANTS.get(name)
    if isinstance(row, Variant):
        return row
    stem, _, parameter = name.partition(":")
    for family in VARIANTS.values():
        if isinstance(family, Family) and family.name.startswith(f"{stem}:"):
            return family.variant(parameter)
    raise UserError(f"Unknown variant '{name}'. Known: {', '.join(VARIANTS)}.")
