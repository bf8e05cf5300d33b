"""Noise in place of the token embedding, while a model runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pipeline.variants.randomise import moments

Moments: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class EmbeddingNoise:
    """Stands in for the token embedding: fresh IID Gaussian noise at every position of every forward pass.

    What the embedding module returns is replaced, so a factor that it applies itself (Gemma's sqrt(d_model)) does not
    touch the noise, and the first block sees these moments.
    """

    embedding: nn.Module
    mean: float = 0.0
    std: float = 1.0

    @contextmanager
    def active(self, generator: torch.Generator) -> Iterator[None]:
        """Replace the embedding's output while the context lasts, drawing from a CPU generator."""

        def replaced(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
            return (torch.randn(output.shape, generator=generator) * self.std + self.mean).to(output)

        handle = self.embedding.register_forward_hook(replaced)
        try:
            yield
        finally:
            handle.remove()


def standard(_embedding: nn.Module) -> Moments:
    """Those of N(0, 1)."""
    return 0.0, 1.0


def matched(embedding: nn.Module) -> Moments:
    """Those of all that the embedding can return: where it scales what it looks up, as Gemma's does, after that."""
    weight = embedding.get_parameter("weight")
    with torch.no_grad():
        return moments(embedding(torch.arange(len(weight), device=weight.device)))
