"""Makes a variant of a loaded model, with a record of what was done to each tensor."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.errors import UserError
from pipeline.models.anatomy import Anatomy, Kind
from pipeline.models.load import LoadedModel
from pipeline.seeds import derive_seed, torch_generator
from pipeline.variants.initialise import fresh
from pipeline.variants.randomise import EmbeddingNoise, WeightTensor, moments
from pipeline.variants.table import Variant, find_variant

Norms: TypeAlias = Literal["keep", "resample"]
Load: TypeAlias = Callable[[str], PreTrainedModel]
"""The model's weights at another revision."""


def check_variant(name: str, model: PreTrainedModel) -> Variant:
    """The row of that name; `model` may be without memory. Raises UserError when the model lacks what it needs."""
    variant = find_variant(name)
    if variant.needs is not None:
        variant.needs(Anatomy(model))
    return variant


@dataclass(frozen=True)
class TensorRecord:
    """What a tensor of a variant really held: one row of `tensors`."""

    name: str
    kind: Kind
    randomised: bool
    """Whether its values are not the trained ones."""
    shape: tuple[int, ...]
    mean: float
    std: float
    sha256: str


@dataclass(frozen=True)
class VariantModel:
    """A model of its own, the record of its tensors, and the noise to run it under, where it has one."""

    model: PreTrainedModel
    records: tuple[TensorRecord, ...]
    noise: EmbeddingNoise | None


def make_variant(
    loaded: LoadedModel, name: str, seed: int, norms: Norms = "resample", load: Load | None = None
) -> VariantModel:
    """Build a variant as a model of its own; the trained one must not have been handed to TransformerLens yet.

    The definitions say every tensor, so norms are redrawn as well; `keep` leaves them as they were trained. The values
    of a tensor depend on seed, variant (without its parameter) and tensor name alone, not on the order of drawing; but
    a model's own initialisation draws in its own order. Tied tensors are one tensor: recorded and drawn once. `load`
    gets the model at another revision. Raises UserError for an unknown variant, and for one that this model cannot
    have.
    """
    variant = check_variant(name, loaded.model)
    stem = name.partition(":")[0]
    model = _start(variant, loaded.model, derive_seed(seed, "variant", stem), load)
    trained = dict(loaded.model.named_parameters())
    anatomy = Anatomy(model)
    records = []
    for tensor_name, parameter in model.named_parameters():
        tensor = WeightTensor(tensor_name, anatomy.kinds[tensor_name], parameter.data, anatomy)
        if variant.is_fresh and norms == "keep" and tensor.kind == "norm":
            tensor.values.copy_(trained[tensor_name])
        _change(variant, tensor, torch_generator(seed, "variant", stem, tensor_name), norms)
        records.append(_record(tensor, trained[tensor_name]))
    return VariantModel(model, tuple(records), _noise(variant, model))


def _start(variant: Variant, trained: PreTrainedModel, seed: int, load: Load | None) -> PreTrainedModel:
    """The model whose tensors are then changed: a copy, a fresh one, or the one of another revision."""
    if variant.is_fresh:
        return fresh(trained, seed)
    if variant.revision is None:
        return copy.deepcopy(trained)
    if load is None:
        raise UserError(
            f"The variant {variant.name} needs a model of the Hub that has a revision '{variant.revision}', as"
            " EleutherAI/pythia-70m has: leave it out for other models, or use init:own, a fresh initialisation."
        )
    model = load(variant.revision)
    if _shapes(model) != _shapes(trained):
        raise UserError(
            f"The model's revision '{variant.revision}' has tensors of other names or shapes than the trained one:"
            f" leave out the variant {variant.name}."
        )
    if all(torch.equal(one, other.cpu()) for one, other in zip(model.parameters(), trained.parameters(), strict=True)):
        raise UserError(
            f"The model's revision '{variant.revision}' holds the trained weights themselves, which happens on the Hub"
            f" (EleutherAI/pythia, issue 205): leave out the variant {variant.name}, or use init:own."
        )
    return model


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _change(variant: Variant, tensor: WeightTensor, generator: torch.Generator, norms: Norms) -> None:
    if variant.randomise is not None and not (tensor.kind == "norm" and norms == "keep"):
        _put(tensor, variant.randomise(tensor, generator))
    if variant.gain is not None:
        _put(tensor, variant.gain(tensor))


def _put(tensor: WeightTensor, values: Tensor | None) -> None:
    if values is not None:
        tensor.values.copy_(values)


def _noise(variant: Variant, model: PreTrainedModel) -> EmbeddingNoise | None:
    if variant.noise_moments is None:
        return None
    embedding = model.get_input_embeddings()
    return EmbeddingNoise(embedding, *variant.noise_moments(embedding))


def _record(tensor: WeightTensor, trained: Tensor) -> TensorRecord:
    values = tensor.values.cpu().contiguous()
    mean, std = moments(values)
    digest = hashlib.sha256(values.numpy().data).hexdigest()
    randomised = not torch.equal(values, trained.cpu())
    return TensorRecord(tensor.name, tensor.kind, randomised, tuple(values.shape), mean, std, digest)


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
