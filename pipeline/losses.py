"""What an SAE costs the model: held-out sequences come in, cross-entropies with and without the SAE go out."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pipeline.hardware import Compute
from pipeline.metrics import Losses
from pipeline.progress import Advance

Replace = Callable[[Float[Tensor, "batch position d_in"]], Float[Tensor, "batch position d_in"]]

SEQUENCES_IN_BATCH = 4


def measure(
    bridge: Any,
    noise: Callable[[], AbstractContextManager[None]],
    sequences: Int[Tensor, "sequence position"],
    saes: dict[int, tuple[Any, float]],
    drop_positions: int,
    compute: Compute,
    advance: Advance,
) -> dict[int, Losses]:
    """Losses for each layer's SAE, `saes` being layer → (SAELens SAE on raw activations, norm that makes an outlier).

    The tokens that the SAE was spared in training (first positions, outliers) keep their own activations, through
    the SAE and with zeros alike. `noise()` starts the variant's input noise afresh, so all runs see the same.
    """
    if compute.device != "cpu":  # TransformerLens announces the move, also when there is none
        bridge.to(compute.device)
    total = 1 + 2 * len(saes)

    def run(hooks: list[tuple[str, Any]], done: int) -> Float[Tensor, " token"]:
        losses = []
        with torch.inference_mode(), compute.autocast(), noise():
            for batch in sequences.split(SEQUENCES_IN_BATCH):
                logits = bridge.run_with_hooks(batch.to(compute.device), fwd_hooks=hooks)
                losses.append(_cross_entropy(logits.float(), batch.to(compute.device), drop_positions))
        advance(done, total)
        return torch.cat(losses)

    clean = run([], 1)
    measured = {}
    for place, (layer, (sae, limit)) in enumerate(saes.items()):
        sae.to(compute.device)
        through = run([_hook(layer, sae, drop_positions, limit)], 2 + 2 * place)
        zero = run([_hook(layer, torch.zeros_like, drop_positions, limit)], 3 + 2 * place)
        measured[layer] = Losses(clean, through, zero)
    return measured


def _hook(layer: int, replace: Replace, drop_positions: int, limit: float) -> tuple[str, Any]:
    def hook(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 (TransformerLens passes it by this name)
        changed = replace(value.float()).to(value.dtype)
        spared = value.float().norm(dim=-1, keepdim=True) > limit
        spared[:, :drop_positions] = True
        return torch.where(spared, value, changed)

    return f"blocks.{layer}.hook_resid_post", hook


def _cross_entropy(logits: Tensor, tokens: Tensor, drop_positions: int) -> Float[Tensor, " token"]:
    """Nats for predicting each token from the position before it, which must be one the SAE sees."""
    logits, targets = logits[:, drop_positions:-1], tokens[:, drop_positions + 1 :]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none").cpu()
