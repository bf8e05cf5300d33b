"""Trains an SAE with SAELens; or makes one with nothing or little learnt, the baselines that an SAE has to beat."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, get_type_hints

import torch
from jaxtyping import Float
from pydantic import ConfigDict, TypeAdapter, ValidationError
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from core.errors import UserError, shown
from pipeline.config import SaeConfig
from pipeline.hardware import Compute
from pipeline.saes.base import CHUNK, Request, Trained, mean, topk_sae, without_options
from pipeline.saes.sparse_topk import SparseTopKTrainingSAE
from pipeline.seeds import derive_seed, torch_generator

OURS = {
    "d_in", "d_sae", "k", "aux_loss_coefficient", "dtype", "device", "metadata", "reshape_activations",
    "normalize_activations", "rescale_acts_by_decoder_norm", "use_sparse_activations",
}  # fmt: skip
"""Fields of SAELens' training configurations that are no options: `SaeConfig` has them, or folding relies on them."""


def _unit_decoder(_d_sae: int) -> dict[str, Any]:
    return {"decoder_init_norm": 1.0}


def _nested(d_sae: int) -> dict[str, Any]:
    """Levels that double: the shares of Bussmann et al. 2025 (arXiv 2503.17547)."""
    widths = sorted({d_sae * share // 32 for share in (1, 3, 7, 15, 32)} - {0})
    return _unit_decoder(d_sae) | {"matryoshka_widths": widths}


DEFAULTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "topk": _unit_decoder,
    "batchtopk": _unit_decoder,
    "matryoshka_batchtopk": _nested,
}
"""Where ours differ from SAELens' own defaults, by the number of latents."""


def train_saelens(request: Request) -> Trained:
    """Train SAELens' SAE of the configuration's architecture."""
    return fit(new_sae(request, request.config.architecture), request)


ABOVE_ZERO = (
    "decoder_init_norm", "jumprelu_bandwidth", "jumprelu_init_threshold", "jumprelu_tanh_scale", "lp_norm",
    "target_l0", "topk_threshold_lr",
)  # fmt: skip
"""Options that SAELens divides by, or takes the logarithm of; the other numbers may be 0."""

LARGEST = {"topk_threshold_lr": 1.0}
"""Largest values of options, where it is not 1e9, which float32 can still square."""


def new_sae(request: Request, architecture: str) -> Any:
    """SAELens' training SAE with its own initial weights, and the scaled mean activation as decoder bias.

    Raises UserError for options that the architecture does not have, or with values that it cannot have.
    """
    kind = get_sae_training_class(architecture)[0]
    if _is_sparse(request.config, architecture):
        kind = SparseTopKTrainingSAE
    chosen = settings_of(request.config, request.d_in, architecture)
    chosen = replace(chosen, device=request.compute.device, metadata=SAEMetadata(**request.metadata))
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(request.seed, "initial weights"))
        sae = kind(chosen)
    with torch.no_grad():
        sae.b_dec.copy_(mean(request.activations) * request.scale)
    if isinstance(sae, SparseTopKTrainingSAE):
        sae.compute = request.compute
        sae.W_enc.data = sae.W_enc.data.T.contiguous().T  # a row a latent in memory, as the sparse gradient has it
    return sae


def _is_sparse(config: SaeConfig, architecture: str) -> bool:
    """Whether the sparse step does what SAELens' would: it has no AuxK, and subtracts the decoder's bias first."""
    return architecture == "topk" and not config.aux_loss_coefficient and set(config.options) <= {"decoder_init_norm"}


def settings_of(config: SaeConfig, d_in: int, architecture: str = "") -> Any:
    """SAELens' training configuration, of another architecture if one is named, yet on no device.

    Raises UserError for settings that it cannot have.
    """
    architecture = architecture or config.architecture
    (kind, settings), d_sae = get_sae_training_class(architecture), config.latents(d_in)
    chosen = DEFAULTS[architecture](d_sae) if architecture in DEFAULTS else {}
    chosen |= _options(config, settings) | _sparsity(config, d_sae, architecture, settings)
    try:
        made = settings(d_in=d_in, d_sae=d_sae, device="meta", **chosen)
        kind(made)  # without memory, because some settings are looked at no earlier
    except ValueError as error:
        raise UserError(f"sae.options do not suit the architecture {architecture}: {error}") from error
    return made


def _sparsity(config: SaeConfig, d_sae: int, architecture: str, settings: Any) -> dict[str, Any]:
    """What only the TopK family has."""
    if "k" in {field.name for field in fields(settings)}:
        if config.k >= d_sae:
            raise UserError(f"sae.k is {config.k}, but this SAE has only {d_sae} latents: take a smaller k.")
        return {"k": config.k, "aux_loss_coefficient": config.aux_loss_coefficient}
    if config.aux_loss_coefficient:
        raise UserError(
            f"sae.aux_loss_coefficient is {config.aux_loss_coefficient}, but the architecture {architecture} has no"
            " AuxK loss, only the TopK family has: set it to 0."
        )
    return {}


def _options(config: SaeConfig, settings: Any) -> dict[str, Any]:
    hints = get_type_hints(settings)
    allowed = [field.name for field in fields(settings) if field.name not in OURS]
    found = {}
    for name, value in config.options.items():
        if name not in allowed:
            raise UserError(
                f"Unknown option '{name}' in sae.options of {config.architecture}. Known: {', '.join(allowed)}."
            )
        try:
            found[name] = TypeAdapter(hints[name], config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise UserError(f"sae.options.{name} = {shown(value)} is invalid: {what}.") from error
        _check_size(name, found[name])
    return found


def _check_size(name: str, value: Any) -> None:
    largest, above = LARGEST.get(name, 1e9), name in ABOVE_ZERO
    if isinstance(value, int | float) and not ((value > 0 if above else value >= 0) and value <= largest):
        least = "above 0" if above else "0 or more"
        raise UserError(f"sae.options.{name} is {shown(value)}; allowed: {least}, and at most {largest:g}.")


def check_batch(config: SaeConfig, tokens: int) -> None:
    """Raise UserError for fewer training tokens than one batch."""
    if config.batch_tokens > tokens:
        raise UserError(
            f"sae.batch_tokens is {config.batch_tokens}, but there are only {tokens} training tokens:"
            " take a smaller batch or more tokens."
        )


def fit(sae: Any, request: Request) -> Trained:
    """Train an SAE; every step draws its batch without replacement within an epoch. Where there is no token at all, it
    stays as it began.

    Raises UserError for fewer tokens than one batch.
    """
    config, compute = request.config, request.compute
    tokens = len(request.activations) + (request.further.tokens if request.further else 0)
    if not tokens:
        return folded(sae, request, 0)
    check_batch(config, tokens)
    steps = config.epochs * (tokens // config.batch_tokens)
    trainer = new_trainer(sae, config, steps, compute)
    for batch in batches(request):
        trainer.step(batch.to(compute.device, torch.float32) * request.scale)
        trainer.n_training_steps += 1
        request.advance(trainer.n_training_steps * config.batch_tokens, steps * config.batch_tokens)
    trainer.set_final_sae_metadata()
    return folded(sae, request, trainer.n_training_steps)


def folded(sae: Any, request: Request, steps: int) -> Trained:
    """Fold the decoder's norms and the activations' scale into the weights; the latents' activations stay the same.

    A latent's activation is then the length of what it adds to the scaled reconstruction.
    """
    sae.to("cpu")
    sae.W_enc.data = sae.W_enc.data.contiguous()
    if isinstance(sae, JumpReLUTrainingSAE):
        sae.threshold.data.clamp_(min=0)  # as SAELens does before every step, but not after the last one
    if isinstance(sae, BatchTopKTrainingSAE) and steps:  # a running mean that starts at 0, and is not there yet
        sae.topk_threshold /= 1 - (1 - sae.cfg.topk_threshold_lr) ** steps
    norms = sae.get_W_dec_norm().clone()
    sae.fold_W_dec_norm()
    if hasattr(sae.cfg, "rescale_acts_by_decoder_norm"):
        sae.cfg.rescale_acts_by_decoder_norm = False
    sae.fold_activation_norm_scaling_factor(request.scale)
    sae.cfg.device = "cpu"
    return Trained(sae, request.scale, norms, steps, steps * request.config.batch_tokens)


def batches(request: Request) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Every step's activations: which tokens share a batch is random, within a piece, and their order is free.

    What a piece has left when no batch is full goes into the next one, and is dropped at the end of an epoch.
    """
    for epoch in range(request.config.epochs):
        generator = torch_generator(request.seed, "epoch", epoch)
        left = request.activations[:0]
        for piece in itertools.chain([request.activations], request.further.pieces() if request.further else ()):
            values, left = torch.cat([left, piece]) if len(left) else piece, left[:0]
            for rows in torch.randperm(len(values), generator=generator).split(request.config.batch_tokens):
                if len(rows) == request.config.batch_tokens:
                    yield values[rows.sort().values]
                else:
                    left = values[rows]


def new_trainer(sae: Any, config: SaeConfig, steps: int, compute: Compute) -> SAETrainer[Any, Any]:
    """SAELens' trainer, whose `step` takes scaled activations."""
    peak = config.peak_learning_rate(sae.cfg.d_in)
    trainer: SAETrainer[Any, Any] = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * config.batch_tokens,
            train_batch_size_samples=config.batch_tokens,
            lr=peak,
            lr_end=peak / 10,
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


def untrained(request: Request) -> Trained:
    """A TopK SAE as it is before the first step: random directions about the mean activation."""
    return folded(new_sae(request, "topk"), request, steps=0)


def frozen_decoder(request: Request) -> Trained:
    """A TopK SAE whose decoder keeps its random directions while encoder and biases learn.

    Source: Korznikov et al. 2026 (arXiv 2602.14111).
    """
    sae = new_sae(request, "topk")
    sae.W_dec.requires_grad_(False)
    return fit(sae, request)


def pca(request: Request) -> Trained:
    """Principal components of the training activations: 2·d_in latents, whatever `d_sae` says.

    Latents 2i and 2i + 1 are the two signs of component i, the largest variance first. TopK keeps the k largest
    projections, so the reconstruction is the best that k components give a token, and exact at k = d_in.
    Compared with SAEs in Cunningham et al. 2023 (arXiv 2309.08600). Raises UserError for a k above d_in.
    """
    return _two_signs(principal_components(request), request, len(request.activations))


def neurons(request: Request) -> Trained:
    """The hook point's own basis: 2·d_in latents, whatever `d_sae` says.

    Latents 2i and 2i + 1 are coordinate i above and below its mean, of which TopK keeps the k largest. Compared
    with SAEs in Cunningham et al. 2023 (arXiv 2309.08600). Raises UserError for a k above d_in.
    """
    return _two_signs(torch.eye(request.d_in), request, 0)


def principal_components(request: Request) -> Float[Tensor, "component d_in"]:
    """Unit vectors by falling variance, computed in float64, the largest entry of each made positive."""
    centre = mean(request.activations).double()
    covariance = torch.zeros(request.d_in, request.d_in, dtype=torch.float64)
    for number, chunk in enumerate(request.activations.split(CHUNK)):
        moved = chunk.double() - centre
        covariance += moved.T @ moved
        request.advance(number * CHUNK + len(chunk), len(request.activations))
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).float()


def check_two_signs(config: SaeConfig, d_in: int) -> None:
    """Raise UserError for a k above d_in, and for options."""
    without_options(config)
    if config.k > d_in:
        raise UserError(
            f"sae.k is {config.k}, but {config.architecture} has only {d_in} directions here: take a smaller k."
        )


def _two_signs(directions: Float[Tensor, "d_in d_in"], request: Request, tokens: int) -> Trained:
    check_two_signs(request.config, request.d_in)
    rows = torch.stack([directions, -directions], dim=1).flatten(0, 1)
    weights = {
        "W_enc": rows.T * request.scale,
        "b_enc": torch.zeros(len(rows)),
        "W_dec": rows / request.scale,
        "b_dec": mean(request.activations),
    }
    sae = topk_sae(weights, request.config.k, request.metadata)
    return Trained(sae, request.scale, torch.ones(len(rows)), 0, tokens)
