"""Variants of toy models, made in memory, and what they have in common with the models they are of."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.models.load import LoadedModel, ModelInfo
from pipeline.variants.initialise import SCHEMES
from pipeline.variants.make import VariantModel, make_variant
from pipeline.variants.randomise import DISTRIBUTIONS
from pipeline.variants.table import VARIANTS
from tests.pipeline.toy import toy_gemma, toy_gpt2, toy_llama, toy_mamba, toy_neox, toy_rwkv, toy_tokenizer

Make = Callable[..., PreTrainedModel]
TRANSFORMERS: list[Make] = [toy_llama, toy_gpt2, toy_neox, toy_gemma]
MODELS: list[Make] = [*TRANSFORMERS, toy_mamba, toy_rwkv]

SWEPT = ["scale:2", "embedding_gain:2", "residual_gain:2", "layers_from:1"]
SWEPT += [f"distribution:{name}" for name in DISTRIBUTIONS] + [f"init:{name}" for name in SCHEMES]
NAMES = [name for name in VARIANTS if "<" not in name and name != "step0"] + SWEPT
"""Every variant that needs no Hub, families by one parameter or all."""
REDRAWN = [name for name in NAMES if name not in ("trained", "control", "control_matched")]


def in_memory(model: PreTrainedModel) -> LoadedModel:
    """A model as if it had been loaded."""
    info = ModelInfo("toy", "code", type(model).__name__, 0, 0, 0, 0, "")
    return LoadedModel(model, toy_tokenizer(), info)


def made(model: PreTrainedModel, name: str, seed: int = 0, **options: Any) -> VariantModel:
    """A variant of it."""
    return make_variant(in_memory(model), name, seed, **options)


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of its parameters."""
    return {name: value.clone() for name, value in model.named_parameters()}


def kept(model: PreTrainedModel, variant: VariantModel) -> dict[str, bool]:
    """Whether each tensor is, bit by bit, the trained one."""
    trained, now = dict(model.named_parameters()), dict(variant.model.named_parameters())
    assert trained.keys() == now.keys()
    return {name: torch.equal(value, now[name]) for name, value in trained.items()}
