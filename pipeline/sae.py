"""Trains one SAE: activations of one hook point come in, a SAELens SAE in SAELens' format goes out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from torch.nn import functional

from pipeline.config import SaeConfig
from pipeline.errors import LineupError
from pipeline.hardware import Compute
from pipeline.progress import Advance
from pipeline.seeds import derive_seed, torch_generator


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


@dataclass(frozen=True)
class Trained:
    """A trained SAE on raw activations, and the facts that SAELens' format does not keep."""

    sae: TopKTrainingSAE
    normalisation: float
    """The factor on raw activations that training saw, folded into the weights."""
    decoder_norms: Float[Tensor, " d_sae"]
    """Norms of the decoder's rows as trained, folded into the encoder; scaled units."""
    steps: int
    tokens: int
    """Tokens trained on, all epochs counted."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the inference SAE in SAELens' format and give the facts."""
        self.sae.save_inference_model(folder)
        return {
            "normalisation": self.normalisation,
            "decoder_norms": self.decoder_norms.tolist(),
            "training_steps": self.steps,
            "training_tokens": self.tokens,
        }


def train(
    activations: Float[Tensor, "token d_in"],
    config: SaeConfig,
    metadata: dict[str, Any],
    seed: int,
    compute: Compute,
    advance: Advance = lambda *_: None,
) -> Trained:
    """Train an SAE on raw activations; every step draws its batch without replacement within an epoch.

    The activations are scaled by sqrt(d_in) / mean norm, the same rule for every variant. The factor and the decoder's
    norms are folded into the weights at the end: the SAE takes raw activations, and a latent's activation is the
    length of what it adds to the scaled reconstruction. Raises LineupError for fewer tokens than one batch.
    """
    steps = config.epochs * (len(activations) // config.batch_tokens)
    if not steps:
        raise LineupError(
            f"sae.batch_tokens is {config.batch_tokens}, but there are only {len(activations)} training tokens:"
            " take a smaller batch or more tokens."
        )
    scale = normalisation(activations)
    sae = _new_sae(activations, scale, config, metadata, seed, compute)
    trainer = _trainer(sae, config, steps, compute)
    for step, rows in enumerate(batches(len(activations), config, seed)):
        trainer.step(activations[rows].to(compute.device, torch.float32) * scale)
        trainer.n_training_steps += 1
        advance((step + 1) * config.batch_tokens, steps * config.batch_tokens)
    trainer.set_final_sae_metadata()
    sae.to("cpu")
    sae.W_enc.data = sae.W_enc.data.contiguous()
    norms = sae.fold_and_get_W_dec_norm().clone()
    sae.cfg.rescale_acts_by_decoder_norm = False
    sae.fold_activation_norm_scaling_factor(scale)
    sae.cfg.device = "cpu"
    return Trained(sae, scale, norms, steps, steps * config.batch_tokens)


def normalisation(activations: Float[Tensor, "token d_in"]) -> float:
    """The factor that makes the mean norm sqrt(d_in)."""
    norms = torch.cat([chunk.float().norm(dim=-1).double() for chunk in activations.split(16_384)])
    return float(activations.shape[-1] ** 0.5 / norms.mean())


def batches(tokens: int, config: SaeConfig, seed: int) -> Iterator[Int[Tensor, " batch"]]:
    """Row numbers of every step's batch, sorted: which tokens share a batch is random, their order within is free."""
    for epoch in range(config.epochs):
        order = torch.randperm(tokens, generator=torch_generator(seed, "epoch", epoch))
        for batch in order.split(config.batch_tokens):
            if len(batch) == config.batch_tokens:
                yield batch.sort().values


def _new_sae(
    activations: Tensor, scale: float, config: SaeConfig, metadata: dict[str, Any], seed: int, compute: Compute
) -> TopKTrainingSAE:
    kind = TopKTrainingSAE if config.aux_loss_coefficient else SparseTopKTrainingSAE
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "initial weights"))
        sae = kind(
            TopKTrainingSAEConfig(
                d_in=activations.shape[-1],
                d_sae=config.d_sae,
                k=config.k,
                aux_loss_coefficient=config.aux_loss_coefficient,
                decoder_init_norm=1.0,
                device=compute.device,
                metadata=SAEMetadata(**metadata),
            )
        )
    with torch.no_grad():
        sae.b_dec.copy_(mean(activations) * scale)
    if isinstance(sae, SparseTopKTrainingSAE):
        sae.compute = compute
        sae.W_enc.data = sae.W_enc.data.T.contiguous().T  # a row a latent in memory, as the sparse gradient has it
    return sae


def mean(activations: Float[Tensor, "token d_in"]) -> Float[Tensor, " d_in"]:
    """The mean activation, summed in float64."""
    total = torch.zeros(activations.shape[-1], dtype=torch.float64)
    for chunk in activations.split(16_384):
        total += chunk.double().sum(0)
    return (total / len(activations)).float()


def _trainer(sae: TopKTrainingSAE, config: SaeConfig, steps: int, compute: Compute) -> SAETrainer[Any, Any]:
    trainer: SAETrainer[Any, Any] = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * config.batch_tokens,
            train_batch_size_samples=config.batch_tokens,
            lr=config.learning_rate,
            lr_end=config.learning_rate / 10,
            lr_warm_up_steps=min(config.warm_up_steps, steps // 4),
            lr_decay_steps=int(config.decay_share * steps),
            device=compute.device,
            autocast=compute.bfloat16 and not isinstance(sae, SparseTopKTrainingSAE),
        ),
        sae=sae,
        data_provider=iter(()),
    )
    for group in trainer.optimizer.param_groups:  # one pass over the parameters instead of ten
        group.update(fused=True, foreach=False)
    return trainer
