"""The module whose output is a hook point, in any architecture."""

import copy
from collections.abc import Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.errors import UserError
from pipeline.config import Hook


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's blocks: the first list of modules that has one for each layer.

    Raises UserError when there is no such list.
    """
    layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise UserError(f"{type(model).__name__} has no list of {layers} blocks: choose a model that is a stack of blocks.")


def hook_module(model: PreTrainedModel, layer: int, hook: Hook) -> nn.Module:
    """The module whose output is TransformerLens' `blocks.{layer}.hook_{hook}`; not yet in TransformerLens' hands.

    Raises UserError when that block has no such hook point.
    """
    block = blocks(model)[layer]
    if hook == "resid_post":
        return block
    found = _branches(model, block)
    if hook not in found:
        has = ", ".join(["resid_post", *found])
        raise UserError(f"hooks: {type(model).__name__} has no '{hook}' in layer {layer}; it has: {has}.")
    return found[hook]


def check_hooks(model: PreTrainedModel, layers: Sequence[int], hooks: Sequence[Hook]) -> None:
    """Raise UserError when the model lacks one of the hook points."""
    for layer in layers:
        for hook in hooks:
            hook_module(model, layer, hook)


def value_of(output: Any) -> Float[Tensor, "batch position d_in"]:
    """The activations in a module's output: itself, or the first of a tuple.

    Raises UserError when they have other axes, as in OPT, whose MLP sees all positions as one batch.
    """
    value: Tensor = output if isinstance(output, Tensor) else output[0]
    if value.ndim != 3:
        raise UserError(
            f"hooks: the model's activations there have shape {list(value.shape)}, not batch, position and dimension:"
            " use resid_post."
        )
    return value


def with_value(output: Any, value: Tensor) -> Any:
    """The module's output with other activations in it."""
    return value if isinstance(output, Tensor) else (value, *output[1:])


def _branches(model: PreTrainedModel, block: nn.Module) -> dict[str, nn.Module]:
    """A block's hook points other than its output, as TransformerLens' table of architectures has them.

    Names alone cannot tell: `post_attention_layernorm` norms the attention's output in Gemma, where it is what enters
    the residual stream and so what TransformerLens calls `hook_attn_out`, but the MLP's input in Llama.
    """
    described = _described(model)
    found = {}
    for hook in get_args(Hook):
        path = described.hook_aliases.get(f"hook_{hook}") if described is not None else None
        module = _resolve(described, block, path) if isinstance(path, str) else None
        if module is not None:
            found[hook] = module
    return found


def _described(model: PreTrainedModel) -> Any:
    """What TransformerLens' bridge would wrap a block in; None for an architecture that it does not know."""
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    name = type(model).__name__
    try:
        config = build_bridge_config_from_hf(copy.deepcopy(model.config), name, name, torch.float32)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    except ValueError:
        return None
    return (adapter.component_mapping or {}).get("blocks")


def _resolve(described: Any, block: nn.Module, path: str) -> nn.Module | None:
    """The module at a path such as `mlp.hook_out`, whose parts are TransformerLens' names."""
    *parts, end = path.split(".")
    names: list[str] = []
    for part in parts:
        described = described.submodules.get(part)
        if described is None:
            return None
        names += [described.name] if described.name else []  # an MLP whose matrices lie in the block itself has none
    try:
        return block.get_submodule(".".join(names)) if names and end == "hook_out" else None
    except AttributeError:  # blocks need not be alike
        return None
