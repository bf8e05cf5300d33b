"""The models that are compared: a loaded model and a variant's name come in, a model and its record go out."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.errors import LineupError
from pipeline.models import LoadedModel
from pipeline.seeds import torch_generator

Kind: TypeAlias = Literal["embedding", "norm", "weight", "bias"]
Norms: TypeAlias = Literal["keep", "resample"]


class WeightTensor(NamedTuple):
    """A tensor of the trained model, as a variant's function sees it."""

    name: str
    kind: Kind
    values: Tensor


Randomise: TypeAlias = Callable[[WeightTensor, torch.Generator], Tensor | None]
"""New values for a tensor, or None to keep the trained ones."""


@dataclass(frozen=True)
class Variant:
    """One row of the table: what a variant is called and what is done to the trained model."""

    name: str
    label: str
    description: str
    is_trained: bool
    randomise: Randomise | None = None
    noise: bool = False
    """Whether the token embeddings are replaced by noise while the model runs."""


@dataclass(frozen=True)
class TensorRecord:
    """What a tensor of a variant really held: one row of `tensors`."""

    name: str
    kind: Kind
    randomised: bool
    shape: tuple[int, ...]
    mean: float
    std: float
    sha256: str


@dataclass(frozen=True)
class EmbeddingNoise:
    """Stands in for the token embedding: fresh IID N(0, 1) at every position of every forward pass."""

    embedding: nn.Module

    @contextmanager
    def active(self, generator: torch.Generator) -> Iterator[None]:
        """Replace the embedding's output while the context lasts, drawing from a CPU generator."""

        def replace(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
            return torch.randn(output.shape, generator=generator).to(output)

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class VariantModel:
    """A model of its own, the record of its tensors, and the noise to run it under, where it has one."""

    model: PreTrainedModel
    records: tuple[TensorRecord, ...]
    noise: EmbeddingNoise | None


def redraw_all(tensor: WeightTensor, generator: torch.Generator) -> Tensor:
    """IID Gaussian values with the tensor's own mean and standard deviation."""
    mean, std = moments(tensor.values)
    return torch.empty_like(tensor.values).normal_(mean, std, generator=generator)


def redraw_blocks(tensor: WeightTensor, generator: torch.Generator) -> Tensor | None:
    """The same, embedding and unembedding kept."""
    return None if tensor.kind == "embedding" else redraw_all(tensor, generator)


VARIANTS: dict[str, Variant] = {
    row.name: row
    for row in (
        Variant(
            "trained",
            "Trained",
            "The released weights.",
            is_trained=True,
        ),
        Variant(
            "rerandomized_incl_embeddings",
            "Re-randomised, incl. embeddings",
            "Every weight tensor redrawn IID from a Gaussian with that tensor's own mean and standard deviation.",
            is_trained=False,
            randomise=redraw_all,
        ),
        Variant(
            "rerandomized_excl_embeddings",
            "Re-randomised, excl. embeddings",
            "Every weight tensor but embedding and unembedding redrawn IID from a Gaussian with that tensor's own"
            " mean and standard deviation.",
            is_trained=False,
            randomise=redraw_blocks,
        ),
        Variant(
            "control",
            "Control",
            "The released weights, but each token's input embedding is replaced by fresh IID N(0, 1) noise at every"
            " occurrence: the model sees no text.",
            is_trained=False,
            noise=True,
        ),
    )
}
"""The variants in the order in which they are listed. A new one is a row here and, perhaps, a function above."""


def find_variant(name: str) -> Variant:
    """The row of that name. Raises LineupError for a name that the table does not have."""
    if name not in VARIANTS:
        raise LineupError(f"Unknown variant '{name}'. Known: {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def make_variant(loaded: LoadedModel, name: str, seed: int, norms: Norms = "resample") -> VariantModel:
    """Build a variant on a copy of the trained model, which must not have been handed to TransformerLens yet.

    The definition says every tensor, so norms are redrawn as well; `keep` leaves them as they were trained. The values
    of a tensor depend on seed, variant and tensor name alone, not on the order of drawing. Tied tensors are one
    tensor: recorded and drawn once. Raises LineupError for an unknown variant.
    """
    variant = find_variant(name)
    model = copy.deepcopy(loaded.model)
    kinds = tensor_kinds(model)
    records = []
    for tensor_name, parameter in model.named_parameters():
        tensor = WeightTensor(tensor_name, kinds[tensor_name], parameter.data)
        generator = torch_generator(seed, "variant", name, tensor_name)
        randomised = _randomise(variant, tensor, generator, norms)
        records.append(_record(tensor, randomised))
    return VariantModel(model, tuple(records), EmbeddingNoise(model.get_input_embeddings()) if variant.noise else None)


def _randomise(variant: Variant, tensor: WeightTensor, generator: torch.Generator, norms: Norms) -> bool:
    if variant.randomise is None or (tensor.kind == "norm" and norms == "keep"):
        return False
    values = variant.randomise(tensor, generator)
    if values is None:
        return False
    tensor.values.copy_(values)
    return True


def tensor_kinds(model: PreTrainedModel) -> dict[str, Kind]:
    """The kind of every parameter, under the names of `named_parameters`, from the module that owns it."""
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    kinds: dict[int, Kind] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            kinds.setdefault(id(parameter), _kind(module, attribute, is_end=id(module) in ends))
    return {name: kinds[id(parameter)] for name, parameter in model.named_parameters()}


def _kind(module: nn.Module, attribute: str, *, is_end: bool) -> Kind:
    if is_end or isinstance(module, nn.Embedding):
        return "embedding"
    if is_norm(module):
        return "norm"
    return "bias" if attribute == "bias" else "weight"


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: by its type, or the type's name where every model has a class of its own."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")


def _record(tensor: WeightTensor, randomised: bool) -> TensorRecord:
    values = tensor.values.cpu().contiguous()
    mean, std = moments(values)
    digest = hashlib.sha256(values.numpy().data).hexdigest()
    return TensorRecord(tensor.name, tensor.kind, randomised, tuple(values.shape), mean, std, digest)


def moments(values: Tensor) -> tuple[float, float]:
    """Mean, and standard deviation over the entries themselves (no sample correction), summed in float64."""
    array = values.cpu().numpy()  # several times faster than torch's float64 sums
    return float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))


def tensor_table(variant: str, records: Sequence[TensorRecord]) -> pa.Table:
    """The rows of `tensors` in schema.sql."""
    return pa.table(
        {
            "variant": pa.array([variant] * len(records), pa.string()),
            "name": pa.array([record.name for record in records], pa.string()),
            "kind": pa.array([record.kind for record in records], pa.string()),
            "randomised": pa.array([record.randomised for record in records], pa.bool_()),
            "shape": pa.array([record.shape for record in records], pa.list_(pa.int32())),
            "mean": pa.array([record.mean for record in records], pa.float64()),
            "std": pa.array([record.std for record in records], pa.float64()),
            "sha256": pa.array([record.sha256 for record in records], pa.string()),
        }
    )
