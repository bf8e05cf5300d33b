"""Which parts a model has: kinds of its tensors, blocks, branches, and what writes to the residual stream.

All of it follows from modules, their types and their places in each other; names of parameters play no part.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.errors import UserError
from pipeline.models.hooks import blocks

Kind: TypeAlias = Literal["embedding", "norm", "weight", "bias"]
End: TypeAlias = Literal["token", "position", "unembedding"]
Branch: TypeAlias = Literal["attention", "MLP"]

LINEAR = (nn.Linear, Conv1D)
CLASSES: dict[Branch, tuple[str, ...]] = {
    "attention": ("Attention", "Attn"),
    "MLP": ("MLP", "Mlp", "FeedForward", "FFN", "MoE", "Moe"),
}
"""A branch is known by what its class is called: every model has classes of its own, as with norms."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: by its type, or the type's name where every model has a class of its own."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("Norm", "NormGated"))


def tensor_kinds(model: PreTrainedModel) -> dict[str, Kind]:
    """The kind of every parameter, under the names of `named_parameters`, from the module that owns it."""
    return Anatomy(model).kinds


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of one model, each worked out when first asked for. Tied parameters are one, under one name."""

    model: PreTrainedModel

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The kind of every parameter."""
        ends = {id(self.model.get_input_embeddings()), id(self.model.get_output_embeddings())}
        found: dict[int, Kind] = {}
        for module in self.model.modules():
            for attribute, parameter in module.named_parameters(recurse=False):
                found.setdefault(id(parameter), _kind(module, attribute, is_end=id(module) in ends))
        return {name: found[id(parameter)] for name, parameter in self.model.named_parameters()}

    @cached_property
    def ends(self) -> dict[str, End]:
        """What every embedding is for; one that is also the unembedding is a token embedding."""
        token = set(self._inside(self.model.get_input_embeddings()))
        output = set(self._inside(self.model.get_output_embeddings()))
        named = [name for name, kind in self.kinds.items() if kind == "embedding"]
        return {name: "token" if name in token else "unembedding" if name in output else "position" for name in named}

    @cached_property
    def matrices(self) -> dict[str, bool]:
        """The matrices of linear layers and embeddings, and whether a row belongs to an input (GPT-2) or an output."""
        owners = [module for module in self.model.modules() if isinstance(module, (*LINEAR, nn.Embedding))]
        return {self._names[id(owner.weight)]: isinstance(owner, Conv1D) for owner in owners}

    @cached_property
    def width(self) -> int:
        """Dimensions of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks. Raises UserError when the model is no stack of blocks."""
        return tuple(blocks(self.model))

    @cached_property
    def block_of(self) -> dict[str, int]:
        """The block, counted from 0, of every tensor that is in one."""
        return {name: number for number, block in enumerate(self.blocks) for name in self._inside(block)}

    def branch(self, branch: Branch) -> frozenset[str]:
        """The tensors inside the blocks' attention, or inside their MLPs. Raises UserError where there are none."""
        found = self._branches[branch]
        if not found:
            raise UserError(
                f"{self._model_class} has no module inside its blocks whose class is called {CLASSES[branch][0]}"
                " or the like: leave out the variants attention_only and mlp_only for this model."
            )
        return found

    @cached_property
    def _branches(self) -> dict[Branch, frozenset[str]]:
        inner = [module for block in self.blocks for module in block.modules() if module is not block]
        return {
            branch: frozenset(
                name
                for module in inner
                if any(word in type(module).__name__ for word in words)
                for name in self._inside(module)
            )
            for branch, words in CLASSES.items()
        }

    @cached_property
    def projections(self) -> tuple[nn.Module, ...]:
        """The linear layers at the end of each branch: of a module's linear layers, the last that is as wide as the
        stream, in the order in which the module defines them (RWKV's gate runs after its output projection).

        Raises UserError when a branch has none.
        """
        return tuple(module for block in self.blocks for module in self._projections_in(block))

    def _projections_in(self, block: nn.Module) -> list[nn.Module]:
        ends = [self._wide(module)[-1] for module in block.modules() if self._wide(module)]
        for child in block.children():
            matrices = any(isinstance(module, LINEAR) for module in child.modules())
            if matrices and not isinstance(child, LINEAR) and not any(module in ends for module in child.modules()):
                raise UserError(
                    f"Cannot tell which weights of {type(child).__name__} write to the residual stream of"
                    f" {self._model_class}: leave out the variants that need to know, residual_gain and init."
                )
        return ends

    def _wide(self, module: nn.Module) -> list[nn.Module]:
        return [child for child in module.children() if isinstance(child, LINEAR) and _outputs(child) == self.width]

    @cached_property
    def projection_names(self) -> frozenset[str]:
        """The weight matrices of the output projections."""
        return frozenset(self._names[id(module.weight)] for module in self.projections)

    @cached_property
    def writers(self) -> dict[str, float]:
        """The tensors that set how much each branch writes, and what their module adds to them before it multiplies.

        Weight and bias of the output projection; but where a norm takes the projection's output and would undo any
        factor on it (Gemma 2 and 3), the norm's, with 1 where the module multiplies by 1 + weight. Runs the model
        once, on four tokens.
        """
        after = self._norms_after()
        found = {}
        for projection in self.projections:
            writer = after.get(projection, projection)
            added = gain_offset(writer) if is_norm(writer) else 0.0
            for attribute, parameter in writer.named_parameters(recurse=False):
                found[self._names[id(parameter)]] = added if attribute == "weight" else 0.0
        return found

    def _norms_after(self) -> dict[nn.Module, nn.Module]:
        """The norm, if any, whose input is a projection's output as it is."""
        last: dict[str, Any] = {}
        found: dict[nn.Module, nn.Module] = {}

        def written(module: nn.Module, _arguments: Any, output: Tensor) -> None:
            last.update(module=module, output=output)

        def normed(module: nn.Module, arguments: tuple[Tensor, ...], _output: Any) -> None:
            if last and torch.equal(arguments[0], last["output"]):
                found[last["module"]] = module

        with ExitStack() as hooks:
            for module in self.projections:
                hooks.callback(module.register_forward_hook(written).remove)
            for module in filter(is_norm, self.model.modules()):
                hooks.callback(module.register_forward_hook(normed).remove)
            with torch.no_grad():
                self.model(torch.arange(4, device=self.model.device)[None], use_cache=False)
        return found

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.model.named_parameters()}

    @property
    def _model_class(self) -> str:
        return type(self.model).__name__

    def _inside(self, module: nn.Module | None) -> Iterator[str]:
        return (self._names[id(parameter)] for parameter in module.parameters()) if module is not None else iter(())


def gain_offset(norm: nn.Module) -> float:
    """What a norm adds to its weight before it multiplies: 0 for most, 1 for Gemma's."""
    probe = copy.deepcopy(norm).requires_grad_(False)
    for parameter in probe.parameters():
        parameter.zero_()
    weight = probe.get_parameter("weight")
    x = torch.linspace(-1, 1, len(weight), device=weight.device)
    with_zero = probe(x)
    weight.fill_(1)
    return float(torch.round(with_zero.norm() / (probe(x) - with_zero).norm()))


def _outputs(linear: nn.Module) -> int:
    return linear.get_parameter("weight").shape[isinstance(linear, Conv1D)]


def _kind(module: nn.Module, attribute: str, *, is_end: bool) -> Kind:
    if is_end or isinstance(module, nn.Embedding):
        return "embedding"
    if is_norm(module):
        return "norm"
    return "bias" if attribute == "bias" else "weight"
