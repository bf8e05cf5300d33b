"""What variants do to a tensor's trained values, or None to keep them; and noise in place of the token embedding.

Everything is drawn on the CPU in float32 from the generator that is handed in.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import UserError
from pipeline.models.anatomy import Anatomy, Kind

TRUNCATED_STD = 0.8796256610342398
"""Standard deviation of N(0, 1) cut off at -2 and 2: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1))."""

CHUNK = 4096
"""Rows that are held in float64 at once."""


class WeightTensor(NamedTuple):
    """A tensor of the model, as a variant's function sees it."""

    name: str
    kind: Kind
    values: Tensor
    anatomy: Anatomy
    """The parts of the model that it is from."""


Randomise: TypeAlias = Callable[[WeightTensor, torch.Generator], Tensor | None]
"""New values for a tensor, or None to keep those it has."""
Gain: TypeAlias = Callable[[WeightTensor], Tensor | None]
"""What becomes of a tensor when it has been redrawn, or None to leave it."""


def moments(values: Tensor) -> tuple[float, float]:
    """Mean, and standard deviation over the entries themselves (no sample correction), summed in float64."""
    array = values.cpu().numpy()  # several times faster than torch's float64 sums
    return float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))


# Gaussian, of every tensor or of some.


def redraw_all(tensor: WeightTensor, generator: torch.Generator) -> Tensor:
    """IID Gaussian values with the tensor's own mean and standard deviation."""
    return redraw_scaled(1.0, tensor, generator)


def redraw_scaled(factor: float, tensor: WeightTensor, generator: torch.Generator) -> Tensor:
    """The same with the standard deviation times a factor, and the mean as it is: the gains of norms stay around 1."""
    mean, std = moments(tensor.values)
    return torch.empty_like(tensor.values).normal_(mean, std * factor, generator=generator)


def redraw_blocks(tensor: WeightTensor, generator: torch.Generator) -> Tensor | None:
    """All but embedding and unembedding."""
    return None if tensor.kind == "embedding" else redraw_all(tensor, generator)


def redraw_attention(tensor: WeightTensor, generator: torch.Generator) -> Tensor | None:
    """Only what is inside the blocks' attention."""
    return redraw_all(tensor, generator) if tensor.name in tensor.anatomy.branch("attention") else None


def redraw_mlp(tensor: WeightTensor, generator: torch.Generator) -> Tensor | None:
    """Only what is inside the blocks' MLPs."""
    return redraw_all(tensor, generator) if tensor.name in tensor.anatomy.branch("MLP") else None


def needs_layer(number: int, anatomy: Anatomy) -> None:
    """Raise UserError when the model has no such block."""
    depth = len(anatomy.blocks)
    if number >= depth:
        raise UserError(f"layers_from:{number}: the model has no layer {number}; allowed: 0 to {depth - 1}.")


def redraw_from(first: int, tensor: WeightTensor, generator: torch.Generator) -> Tensor | None:
    """Only the blocks from that one on."""
    return redraw_all(tensor, generator) if tensor.anatomy.block_of.get(tensor.name, -1) >= first else None


def redraw_tokens(tensor: WeightTensor, generator: torch.Generator) -> Tensor | None:
    """Only the token embedding."""
    return redraw_all(tensor, generator) if tensor.anatomy.ends.get(tensor.name) == "token" else None


# Gains, on top of a redraw.


def embedding_gain(factor: float, tensor: WeightTensor) -> Tensor | None:
    """What is looked up and enters the stream, tokens and positions, times a factor."""
    return tensor.values * factor if tensor.anatomy.ends.get(tensor.name) in ("token", "position") else None


def residual_gain(factor: float, tensor: WeightTensor) -> Tensor | None:
    """What attention and MLP write to the stream, times a factor: weights and biases of their last modules."""
    added = tensor.anatomy.writers.get(tensor.name)
    return None if added is None else factor * (tensor.values + added) - added


# Other distributions with the tensor's own mean and standard deviation.


def shuffle(tensor: WeightTensor, generator: torch.Generator) -> Tensor:
    """The trained entries in random order."""
    return tensor.values.flatten()[torch.randperm(tensor.values.numel(), generator=generator)].view_as(tensor.values)


def uniform(tensor: WeightTensor, generator: torch.Generator) -> Tensor:
    """Within sqrt(3) standard deviations of the mean."""
    return _standardised(tensor, torch.empty_like(tensor.values).uniform_(-(3**0.5), 3**0.5, generator=generator))


def truncated_normal(tensor: WeightTensor, generator: torch.Generator) -> Tensor:
    """A Gaussian cut off at twice its standard deviation, then widened to the tensor's."""
    drawn = torch.empty_like(tensor.values)
    torch.nn.init.trunc_normal_(drawn, 0.0, 1.0, -2.0, 2.0, generator=generator)
    return _standardised(tensor, drawn / TRUNCATED_STD)


def rademacher(tensor: WeightTensor, generator: torch.Generator) -> Tensor:
    """One standard deviation above or below the mean, either with probability one half."""
    return _standardised(tensor, torch.empty_like(tensor.values).bernoulli_(0.5, generator=generator) * 2 - 1)


def _standardised(tensor: WeightTensor, drawn: Tensor) -> Tensor:
    mean, std = moments(tensor.values)
    return drawn * std + mean


# Distributions of matrices: of linear layers and embeddings, with a row for each output or token.


def row_gaussian(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """IID Gaussian values with each row's own mean and standard deviation."""
    mean, std = matrix.mean(1, keepdim=True), matrix.std(1, correction=0, keepdim=True)
    return torch.empty_like(matrix).normal_(generator=generator) * std + mean


def semi_orthogonal(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """Orthogonal rows or columns, whichever are fewer, of one length, uniformly drawn; the mean, nearly 0, is dropped.

    An entry of an orthonormal n x k matrix has the mean square 1/n: the lengths follow from the standard deviation.
    """
    long, short = max(matrix.shape), min(matrix.shape)
    drawn = _orthonormal(long, short, generator) * (moments(matrix)[1] * math.sqrt(long))
    return drawn if matrix.shape == drawn.shape else drawn.T


def spectrum_preserving(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """The trained singular values with random singular vectors: the Frobenius norm stays, the mean does not."""
    narrow = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    spectrum = torch.linalg.eigvalsh(_gram(narrow)).clamp(min=0).sqrt().float()
    left, right = (_orthonormal(side, len(spectrum), generator) for side in matrix.shape)
    made: Tensor = (left * spectrum) @ right.T
    return made


def _orthonormal(long: int, short: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns, uniformly drawn: a Gaussian Z times (Z'Z)^(-1/2) (Chikuse 2003, theorem 2.2.1).

    By products of matrices alone: QR of an embedding takes minutes.
    """
    drawn = torch.empty(long, short).normal_(generator=generator)
    values, vectors = torch.linalg.eigh(_gram(drawn))
    root = (vectors * values.rsqrt()) @ vectors.T
    return torch.cat([(rows.double() @ root).float() for rows in drawn.split(CHUNK)])


def _gram(matrix: Tensor) -> Tensor:
    """Columns times columns, summed in float64: square roots of its small eigenvalues keep float32's precision."""
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for rows in matrix.split(CHUNK):
        gram += rows.double().T @ rows.double()
    return gram


def on_matrices(draw: Callable[[Tensor, torch.Generator], Tensor]) -> Randomise:
    """Matrices by `draw`; what has no rows to speak of (biases, norms, a state-space model's own) Gaussian."""

    def randomise(tensor: WeightTensor, generator: torch.Generator) -> Tensor:
        inputs_first = tensor.anatomy.matrices.get(tensor.name)
        if inputs_first is None:
            return redraw_all(tensor, generator)
        return draw(tensor.values.T, generator).T if inputs_first else draw(tensor.values, generator)

    return randomise


DISTRIBUTIONS: dict[str, tuple[str, Randomise]] = {
    "uniform": ("a uniform distribution", uniform),
    "truncated_normal": ("a Gaussian cut off at two of its standard deviations", truncated_normal),
    "rademacher": ("two values, one standard deviation above and below the mean", rademacher),
    "row_gaussian": (
        "a Gaussian with the mean and standard deviation of each row of a matrix",
        on_matrices(row_gaussian),
    ),
    "semi_orthogonal": ("random matrices with orthogonal rows or columns", on_matrices(semi_orthogonal)),
    "spectrum_preserving": (
        "random matrices with the trained singular values",
        on_matrices(spectrum_preserving),
    ),
}
"""Parameter of `distribution`: in words, and who draws it."""


Moments: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class EmbeddingNoise:
    """Stands in for the token embedding: fresh IID Gaussian noise at every position of every forward pass.

    What the embedding module returns is replaced, so a factor that it applies itself (Gemma's sqrt(d_model)) does not
    touch the noise, and the first block sees these moments.
    """

    embedding: nn.Module
    mean: float = 0.0
    std: float = 1.0

    @contextmanager
    def active(self, generator: torch.Generator) -> Iterator[None]:
        """Replace the embedding's output while the context lasts, drawing from a CPU generator."""

        def replaced(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
            return (torch.randn(output.shape, generator=generator) * self.std + self.mean).to(output)

        handle = self.embedding.register_forward_hook(replaced)
        try:
            yield
        finally:
            handle.remove()


def standard(_embedding: nn.Module) -> Moments:
    """Those of N(0, 1)."""
    return 0.0, 1.0


def matched(embedding: nn.Module) -> Moments:
    """Those of all that the embedding can return: where it scales what it looks up, as Gemma's does, after that."""
    weight = embedding.get_parameter("weight")
    with torch.no_grad():
        return moments(embedding(torch.arange(len(weight), device=weight.device)))
