"""The models that are compared: a loaded model and a variant's name come in, a model and its record go out."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter, methodcaller
from typing import Literal, TypeAlias

import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.errors import LineupError
from pipeline.models.anatomy import Anatomy, Kind
from pipeline.models.load import LoadedModel
from pipeline.seeds import derive_seed, torch_generator
from pipeline.variants import randomise
from pipeline.variants.initialise import SCHEMES, fresh, initialise
from pipeline.variants.noise import EmbeddingNoise, matched, standard
from pipeline.variants.randomise import DISTRIBUTIONS, WeightTensor, moments
from pipeline.variants.rows import Family, Variant, layer_number, positive

Norms: TypeAlias = Literal["keep", "resample"]
Load: TypeAlias = Callable[[str], PreTrainedModel]
"""The model's weights at another revision."""

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
    """The row of that name, parameter included, such as `scale:0.5`. Raises LineupError for what the table lacks."""
    row = VARIANTS.get(name)
    if isinstance(row, Variant):
        return row
    stem, _, parameter = name.partition(":")
    for family in VARIANTS.values():
        if isinstance(family, Family) and family.name.startswith(f"{stem}:"):
            return family.variant(parameter)
    raise LineupError(f"Unknown variant '{name}'. Known: {', '.join(VARIANTS)}.")


def check_variant(name: str, model: PreTrainedModel) -> Variant:
    """The row of that name; `model` may be without memory. Raises LineupError when the model lacks what it needs."""
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
    gets the model at another revision. Raises LineupError for an unknown variant, and for one that this model cannot
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
        raise LineupError(
            f"The variant {variant.name} needs a model of the Hub that has a revision '{variant.revision}', as"
            " EleutherAI/pythia-70m has: leave it out for other models, or use init:own, a fresh initialisation."
        )
    model = load(variant.revision)
    if _shapes(model) != _shapes(trained):
        raise LineupError(
            f"The model's revision '{variant.revision}' has tensors of other names or shapes than the trained one:"
            f" leave out the variant {variant.name}."
        )
    if all(torch.equal(one, other.cpu()) for one, other in zip(model.parameters(), trained.parameters(), strict=True)):
        raise LineupError(
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
