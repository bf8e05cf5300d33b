"""Losses of the model on held-out text, with and without an SAE in its place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import Hook
from pipeline.hardware import Compute
from pipeline.measures.metrics import NOT_FINITE, Losses, ce_loss_recovered, kl_recovered, sae_metrics_table
from pipeline.models.hooks import hook_module, value_of, with_value
from pipeline.progress import Advance
from pipeline.seeds import derive_seed, torch_generator
from pipeline.variants.make import VariantModel

Replace: TypeAlias = Callable[[Float[Tensor, "batch position d_in"]], Float[Tensor, "batch position d_in"]]
Point: TypeAlias = tuple[int, Hook]
"""Layer and hook."""
Changed: TypeAlias = tuple[Tensor, Tensor]
"""Cross-entropy, and KL(clean ‖ this) in nats, of a changed model: each [sequence, position]."""

OF_SAES = ("ce_sae", "kl_sae", "ce_loss_recovered", "kl_recovered")
"""Metrics that depend on the SAE; the others are the model's own."""

LOGITS = 2**25
"""Logits of a batch, which bounds the memory: three times 128 MB. One sequence at least, whatever its length."""
ROWS = 64
"""Positions whose distributions are compared at once."""


class Placed(NamedTuple):
    """An SAE and where it goes."""

    point: Point
    sae: Any
    """SAELens' SAE on raw activations, or another function."""
    limit: float
    """The norm from which a token is an outlier, the same for all SAEs of a hook point."""


class _Batch:
    """Some sequences and the variant that runs on them, as often as is asked and under the same noise each time."""

    def __init__(self, variant: VariantModel, tokens: Tensor, drop_positions: int, seed: int, compute: Compute) -> None:
        self.variant = variant
        self.tokens = tokens.to(compute.device)
        self.drop_positions = drop_positions
        self.seed = seed
        self.compute = compute

    @cached_property
    def clean(self) -> Float[Tensor, "row vocab"]:
        """Log-probabilities of the model as it is, which this keeps."""
        return self._logits().log_softmax(-1)

    def changed(self, module: nn.Module, limit: float, replace: Replace) -> Changed:
        """Of the model with something else in place of a module's output."""
        with _replaced(module, replace, self.drop_positions, limit):
            changed = self._logits()
        for part in changed.split(ROWS):
            part.copy_(part.log_softmax(-1))
        pairs = zip(self.clean.split(ROWS), changed.split(ROWS), strict=True)
        divergences = [functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).cpu() for p, q in pairs]
        losses = self.cross_entropy(changed)
        return losses, torch.cat(divergences).view(losses.shape)

    def cross_entropy(self, log_probabilities: Float[Tensor, "row vocab"]) -> Float[Tensor, "sequence position"]:
        """Nats for predicting each token from the position before it."""
        targets = self.tokens[:, self.drop_positions + 1 :].long()
        losses = functional.nll_loss(log_probabilities, targets.flatten(), reduction="none")
        return losses.view(targets.shape).cpu()

    def _logits(self) -> Float[Tensor, "row vocab"]:
        """At the positions that the SAE sees, the last one excepted, which has no next token here."""
        noise = self.variant.noise.active(torch_generator(self.seed)) if self.variant.noise else nullcontext()
        with self.compute.autocast(), noise:
            logits: Tensor = self.variant.model(self.tokens, use_cache=False).logits
        return logits[:, self.drop_positions : -1].float().flatten(0, 1)


def measure(
    variant: VariantModel,
    sequences: Int[Tensor, "sequence position"],
    saes: Sequence[Placed],
    drop_positions: int,
    seed: int,
    compute: Compute,
    advance: Advance,
) -> list[Losses]:
    """Losses for each SAE, in order. The model runs once as it is, once with zeros at each hook point, once an SAE.

    The tokens that the SAE was spared in training (first positions, outliers) keep their own activations, through
    the SAE and with zeros alike. Where the variant sees noise, all runs see the same. `advance` counts forward passes.
    Raises UserError when the model lacks a hook point.
    """
    variant.model.to(compute.device)
    points = {placed.point: (hook_module(variant.model, *placed.point), placed.limit) for placed in saes}
    ready = [placed.sae.to(compute.device) for placed in saes]
    per_sequence = sequences.shape[1] * variant.model.get_output_embeddings().weight.shape[0]
    batches = sequences.split(max(1, LOGITS // per_sequence))
    passes = 1 + len(points) + len(saes)
    found: list[list[Losses]] = [[] for _ in saes]
    for number, tokens in enumerate(batches):
        noise = derive_seed(seed, "noise", "losses", number)
        batch = _Batch(variant, tokens, drop_positions, noise, compute)
        with torch.inference_mode():
            own = batch.cross_entropy(batch.clean)
            zeros = {point: batch.changed(*where, torch.zeros_like) for point, where in points.items()}
            for placed, sae, parts in zip(saes, ready, found, strict=True):
                ce_sae, kl_sae = batch.changed(*points[placed.point], sae)
                ce_zero, kl_zero = zeros[placed.point]
                parts.append(Losses(own, ce_sae, ce_zero, kl_sae, kl_zero))
        advance(passes * (number + 1), passes * len(batches))
    return [Losses(*map(torch.cat, zip(*parts, strict=True))) for parts in found]


def loss_metrics(losses: Losses, vocab_size: int, sees_noise: bool) -> tuple[dict[str, float], dict[str, str]]:
    """What `sae_metrics_table` takes: values, and reasons where there is none.

    Cross-entropy is about the text, of which a variant that sees noise knows nothing. KL compares the model with
    itself, with and without the SAE, and so means the same for every variant.
    """
    names = ("ce_clean", "ce_sae", "ce_zero", "kl_sae", "kl_zero")
    values = {name: float(each.double().mean()) for name, each in zip(names, losses, strict=True)}
    finite = all(each.isfinite().all() for each in losses)
    recovered = {
        "ce_loss_recovered": ce_loss_recovered(losses, vocab_size) if finite else (None, NOT_FINITE),
        "kl_recovered": kl_recovered(losses) if finite else (None, NOT_FINITE),
    }
    if sees_noise:
        reason = "the variant sees noise in place of the text: its loss on the text means nothing"
        recovered["ce_loss_recovered"] = (None, reason)
    values |= {name: value for name, (value, _) in recovered.items() if value is not None}
    return values, {name: reason for name, (value, reason) in recovered.items() if value is None}


def losses_table(losses: Losses, vocab_size: int, sees_noise: bool, failure: str) -> pa.Table:
    """Rows of `sae_metrics` for one SAE; `failure` says why it is none, '' for a good one."""
    values, lacking = loss_metrics(losses, vocab_size, sees_noise)
    return sae_metrics_table(values, lacking | dict.fromkeys(OF_SAES if failure else (), failure))


@contextmanager
def _replaced(module: nn.Module, replace: Replace, drop_positions: int, limit: float) -> Iterator[None]:
    """Put something else in place of a module's output while the context lasts, but for the tokens that are spared."""

    def hook(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        value = value_of(output)
        changed = replace(value.float()).to(value.dtype)
        spared = value.float().norm(dim=-1, keepdim=True) > limit
        spared[:, :drop_positions] = True
        return with_value(output, torch.where(spared, value, changed))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
