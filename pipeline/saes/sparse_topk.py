"""SAELens' TopK training SAE with sparse products: the same loss, much cheaper."""

from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE
from torch import Tensor
from torch.nn import functional

from pipeline.hardware import Compute


class _TopKEncode(torch.autograd.Function):
    """The pre-activations of the k latents that TopK picks, and which those are; dense forwards, sparse backwards.

    Only k of d_sae latents carry a gradient, so dW_enc = xᵀ·dA is a sparse product, several times cheaper on a CPU
    than the dense one that autograd would take.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_enc: Tensor, b_enc: Tensor, b_dec: Tensor, norms: Tensor, k: int, compute: Compute
    ) -> tuple[Tensor, Tensor]:
        centred = x - b_dec
        with compute.autocast():
            pre = torch.addmm(b_enc, centred, w_enc)
        scaled, latents = torch.topk(pre.mul_(norms), k, dim=-1, sorted=False)
        ctx.save_for_backward(centred, w_enc, latents)
        ctx.mark_non_differentiable(latents)
        return scaled.float() / norms[latents], latents

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        centred, w_enc, latents = ctx.saved_tensors
        d_pre, d_sae = gradients[0], w_enc.shape[1]
        d_b_enc = torch.zeros(d_sae, device=d_pre.device).index_add_(0, latents.flatten(), d_pre.flatten())
        d_w_enc = _weighted_rows(centred, d_pre, latents, d_sae).T
        return None, d_w_enc, d_b_enc, -(w_enc @ d_b_enc), None, None, None


def _weighted_rows(
    rows: Float[Tensor, "batch d_in"], weights: Float[Tensor, "batch k"], latents: Int[Tensor, "batch k"], d_sae: int
) -> Float[Tensor, "d_sae d_in"]:
    """For each latent the sum of the batch's rows, weighted by what it has on each."""
    flat = latents.flatten()
    order = torch.argsort(flat, stable=True)
    ends = torch.bincount(flat, minlength=d_sae).cumsum(0)
    return functional.embedding_bag(
        torch.div(order, latents.shape[1], rounding_mode="floor"),
        rows,
        offsets=functional.pad(ends, (1, 0)),
        per_sample_weights=weights.flatten()[order],
        mode="sum",
        include_last_offset=True,
    )


class SparseTopKTrainingSAE(TopKTrainingSAE):  # type: ignore[misc]  # SAELens is not followed by the type check
    """SAELens' TopK training SAE with the same mathematics and parameters, and sparse products where it has dense ones.

    Its loss and gradients equal those of the parent (a test compares them); it leaves out AuxK, which SAELens
    computes from dense pre-activations. Saved, it is an ordinary SAELens `topk` SAE.
    """

    compute = Compute("cpu", bfloat16=False)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """The loss of one batch: squared error summed over d_in, mean over the batch (as in SAELens)."""
        x = step_input.sae_in
        # SAELens scales a latent's activation by its decoder row's norm, and the row by its inverse: the norms
        # decide which latents are picked and cancel out of everything else, gradients included.
        norms = self.W_dec.detach().norm(dim=-1)
        pre, latents = _TopKEncode.apply(  # type: ignore[no-untyped-call]
            x, self.W_enc, self.b_enc, self.b_dec, norms, self.cfg.k, self.compute
        )
        values = pre.relu()
        sae_out = functional.embedding_bag(latents, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
        loss = (sae_out - x).pow(2).sum(dim=-1).mean()
        return TrainStepOutput(
            sae_in=x,
            sae_out=sae_out,
            feature_acts=_sparse(values.detach() * norms[latents], latents, len(norms)),
            hidden_pre=pre,
            loss=loss,
            losses={"mse_loss": loss},
        )


def _sparse(values: Tensor, latents: Tensor, d_sae: int) -> Tensor:
    """The COO tensor [batch, d_sae] in which SAELens' trainer counts firings."""
    rows = torch.arange(len(latents), device=latents.device).repeat_interleave(latents.shape[1])
    return torch.sparse_coo_tensor(
        torch.stack([rows, latents.flatten()]), values.flatten(), (len(latents), d_sae), check_invariants=False
    )
