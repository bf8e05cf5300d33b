"""Small activations and configurations for tests of SAEs."""

import torch

from pipeline.activations import Activations
from pipeline.config import SaeConfig
from pipeline.hardware import Compute
from pipeline.saes.base import Request

CPU = Compute("cpu", bfloat16=False)


def activations(tokens: int = 2_000, d_in: int = 16, seed: int = 0) -> torch.Tensor:
    """Sparse mixtures of 24 directions on top of an offset."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(24, d_in, generator=generator)
    weights = torch.rand(tokens, 24, generator=generator) * (torch.rand(tokens, 24, generator=generator) < 0.1)
    return weights @ directions * 7 + 2 + 0.05 * torch.randn(tokens, d_in, generator=generator)


def small(**changes: object) -> SaeConfig:
    values = {"d_sae": 64, "k": 4, "batch_tokens": 100, "learning_rate": 3e-3, "warm_up_steps": 5, "epochs": 4}
    return SaeConfig.model_validate(values | changes)


def request(x: torch.Tensor, config: SaeConfig, hook_name: str = "blocks.0.hook_resid_post") -> Request:
    return Request(x, config, {"hook_name": hook_name}, 1, CPU, lambda *_: None)


def on_corpus(x: torch.Tensor) -> Activations:
    """The same activations as those of a corpus of twice as many tokens, every other of which is dropped."""
    return Activations(x, torch.arange(len(x)) * 2, 0.5, 0, 1e9)


def unexplained(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    """Fraction of variance unexplained."""
    return float((x_hat.detach() - x).square().sum() / (x - x.mean(0)).square().sum())
