"""Input and output of everything that makes an SAE: a `Request` and a `Trained`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAEMetadata, TrainingSAE
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from torch import Tensor

from core.errors import UserError
from pipeline.config import SaeConfig
from pipeline.hardware import Compute
from pipeline.progress import Advance

CHUNK = 16_384
"""Tokens that are summed at once."""


@dataclass(frozen=True)
class Trained:
    """An SAE on raw activations, and the facts that SAELens' format does not keep."""

    sae: Any
    """A SAELens SAE: one as trained, with everything folded into its weights, or one for inference."""
    normalisation: float
    """The factor that makes the mean norm of the raw activations sqrt(d_in)."""
    decoder_norms: Float[Tensor, " d_sae"]
    """Norms of the decoder's rows as trained, before they were folded into the encoder; scaled units."""
    steps: int
    tokens: int
    """Tokens trained on, all epochs counted."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the inference SAE in SAELens' format and give the facts; `k` is None where there is none."""
        write = self.sae.save_inference_model if isinstance(self.sae, TrainingSAE) else self.sae.save_model
        write(folder)
        k = getattr(self.sae.cfg, "k", None)
        return {
            "d_in": self.sae.cfg.d_in,
            "d_sae": self.sae.cfg.d_sae,
            "k": None if k is None else int(k),
            "normalisation": self.normalisation,
            "decoder_norms": self.decoder_norms.tolist(),
            "training_steps": self.steps,
            "training_tokens": self.tokens,
        }


@dataclass(frozen=True)
class Further:
    """Training tokens beyond those whose activations are in memory."""

    tokens: int
    """How many at most: outliers are left out as they are met."""
    pieces: Callable[[], Iterator[Float[Tensor, "token d_in"]]]
    """Their raw activations, made piece by piece; each call begins anew and gives the same."""


@dataclass(frozen=True)
class Request:
    """All that decides what one SAE becomes."""

    activations: Float[Tensor, "token d_in"]
    """Raw activations of the training tokens, or of the first of them: means, scale and PCA come from these."""
    config: SaeConfig
    metadata: dict[str, Any]
    """Goes into the SAE's own configuration; `hook_name` is TransformerLens' name of the hook point."""
    seed: int
    compute: Compute
    advance: Advance
    further: Further | None = None
    """The other training tokens."""

    @property
    def d_in(self) -> int:
        """Dimensions of the hook point."""
        return self.activations.shape[-1]

    @cached_property
    def scale(self) -> float:
        """The factor that makes the activations' mean norm sqrt(d_in)."""
        return normalisation(self.activations)


Make = Callable[[Request], Trained]


def without_options(config: SaeConfig) -> None:
    """Raise UserError where the study gives options to an architecture that has none."""
    if config.options:
        raise UserError(
            f"sae.options has {', '.join(config.options)}, but the architecture {config.architecture} has no options:"
            " remove them."
        )


def normalisation(activations: Float[Tensor, "token d_in"]) -> float:
    """The factor that makes the mean norm sqrt(d_in); 1 where there are none."""
    if not len(activations):
        return 1.0
    norms = torch.cat([chunk.float().norm(dim=-1).double() for chunk in activations.split(CHUNK)])
    return float(activations.shape[-1] ** 0.5 / norms.mean())


def mean(activations: Float[Tensor, "token d_in"]) -> Float[Tensor, " d_in"]:
    """The mean activation, summed in float64; 0 where there are none."""
    total = torch.zeros(activations.shape[-1], dtype=torch.float64)
    for chunk in activations.split(CHUNK):
        total += chunk.double().sum(0)
    return (total / max(len(activations), 1)).float()


def topk_sae(weights: dict[str, Tensor], k: int, metadata: dict[str, Any]) -> TopKSAE:
    """SAELens' TopK SAE with the given `W_enc` [d_in, d_sae], `b_enc`, `W_dec` [d_sae, d_in] and `b_dec`."""
    d_in, d_sae = weights["W_enc"].shape
    config = TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, device="meta", metadata=SAEMetadata(**metadata))
    sae = TopKSAE(config)  # without memory, and without drawing initial weights
    sae.load_state_dict({name: value.float().contiguous() for name, value in weights.items()}, assign=True)
    return sae.to("cpu")
