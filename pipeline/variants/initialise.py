"""Fresh initialisations: a model as it is before its first training step.

A scheme draws the matrices of linear layers and embeddings. Everything else, such as norms, biases and a state-space
model's own tensors, is as the model's own code initialises it.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models.anatomy import Anatomy
from pipeline.variants.randomise import WeightTensor


def fresh(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A new model of the same class and configuration, as its own `_init_weights` leaves it, in float32.

    That code draws from torch's global generator, in its own order: seeded here, and put back afterwards. Where the
    configuration does not say how wide to draw (`initializer_range`; GGUF files have none), transformers takes 0.02.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made: PreTrainedModel = type(model)(copy.deepcopy(model.config))
    return made.float().eval().requires_grad_(False)


class Matrix(NamedTuple):
    """What a scheme may depend on."""

    inputs: int
    outputs: int
    d_model: int
    n_layers: int
    branches: int
    """Output projections of the whole model: twice the layers, for a transformer."""
    writes: bool
    """Whether it is an output projection, which writes to the residual stream."""


@dataclass(frozen=True)
class Scheme:
    """One row of the table: how wide a matrix is drawn, and in which shape."""

    name: str
    matrices: str
    std: Callable[[Matrix], float] | None = None
    """None: the model's own code, and no more."""
    is_uniform: bool = False

    @property
    def words(self) -> str:
        """The scheme in a line."""
        return self.matrices if self.std is None else f"matrices {self.matrices}; all else by the model's own code"


def gpt2_std(matrix: Matrix) -> float:
    """0.02, and for what writes to the stream 0.02 / sqrt(branches) (Radford et al. 2019, section 2.3)."""
    return 0.02 / math.sqrt(matrix.branches) if matrix.writes else 0.02


def small_std(matrix: Matrix) -> float:
    """sqrt(2 / (5 d_model)) (small_init, Nguyen and Salazar 2019, arXiv 1910.05895), and for what writes to the
    stream 2 / (n_layers sqrt(d_model)) (wang_init, of GPT-J's code): both as GPT-NeoX uses them (arXiv 2204.06745)."""
    if matrix.writes:
        return 2 / (matrix.n_layers * math.sqrt(matrix.d_model))
    return math.sqrt(2 / (5 * matrix.d_model))


def xavier_std(matrix: Matrix) -> float:
    """sqrt(2 / (inputs + outputs)) (Glorot and Bengio 2010)."""
    return math.sqrt(2 / (matrix.inputs + matrix.outputs))


def kaiming_std(matrix: Matrix) -> float:
    """sqrt(2 / inputs) (He et al. 2015, arXiv 1502.01852)."""
    return math.sqrt(2 / matrix.inputs)


SCHEMES: dict[str, Scheme] = {
    row.name: row
    for row in (
        Scheme("own", "all by the model's own code (transformers' _init_weights)"),
        Scheme("gpt2", "as GPT-2's, std 0.02, over the root of the number of branches where one writes", gpt2_std),
        Scheme("small", "as GPT-NeoX's, small_init, and wang_init where a branch writes", small_std),
        Scheme("xavier_normal", "Gaussian (Xavier), variance 2 / (inputs + outputs)", xavier_std),
        Scheme("xavier_uniform", "uniform (Xavier), variance 2 / (inputs + outputs)", xavier_std, is_uniform=True),
        Scheme("kaiming_normal", "Gaussian (Kaiming), variance 2 / inputs", kaiming_std),
        Scheme("kaiming_uniform", "uniform (Kaiming), variance 2 / inputs", kaiming_std, is_uniform=True),
    )
}
"""Parameter of `init`. An embedding counts as torch counts it, with as many inputs as dimensions."""


def initialise(scheme: Scheme, tensor: WeightTensor, generator: torch.Generator) -> Tensor | None:
    """The values of a matrix by the scheme, or None for what the model's own code initialises."""
    if scheme.std is None or tensor.name not in tensor.anatomy.matrices:
        return None
    std = scheme.std(matrix_of(tensor.name, tensor.values, tensor.anatomy))
    drawn = torch.empty_like(tensor.values)
    if scheme.is_uniform:
        return drawn.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std, generator=generator)
    return drawn.normal_(0.0, std, generator=generator)


def matrix_of(name: str, values: Tensor, anatomy: Anatomy) -> Matrix:
    """The facts about a matrix of the model."""
    inputs, outputs = values.shape if anatomy.matrices[name] else values.shape[::-1]
    writes = name in anatomy.projection_names
    return Matrix(inputs, outputs, anatomy.width, len(anatomy.blocks), len(anatomy.projections), writes)
