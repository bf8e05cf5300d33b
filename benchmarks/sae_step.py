"""The TopK training step against SAELens' own, on the same batches: median tokens a second of each, and the ratio.

    python benchmarks/sae_step.py

The two take turns, so that a machine that slows down slows both.
"""

import statistics
import time
import warnings
from typing import Any

import torch
from sae_lens.saes.topk_sae import TopKTrainingSAE

from pipeline.config import SaeConfig
from pipeline.hardware import describe, detect
from pipeline.saes.base import Request
from pipeline.saes.training import new_sae, new_trainer

D_IN, STEPS = 576, 15


def trainer(kind: str, activations: torch.Tensor) -> Any:
    """A trainer as the pipeline sets it up, or one of SAELens' own SAE with SAELens' own optimiser settings."""
    config, compute = SaeConfig(), detect()
    made = new_sae(Request(activations, config, {}, 0, compute, lambda *_: None), "topk")
    if kind == "saelens":
        own = TopKTrainingSAE(made.cfg)
        own.load_state_dict({name: value.contiguous() for name, value in made.state_dict().items()})
        made = own
    found = new_trainer(made, config, 1_000, compute)
    if kind == "saelens":
        for group in found.optimizer.param_groups:
            group.update(fused=None, foreach=None)
    return found


def main() -> None:
    """Print the figures."""
    warnings.simplefilter("ignore")
    activations = torch.randn(16_384, D_IN, generator=torch.Generator().manual_seed(0))
    batches = activations.split(SaeConfig().batch_tokens)
    trainers = {kind: trainer(kind, activations) for kind in ("lineup", "saelens")}
    seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
    for step in range(STEPS):
        for kind, one in trainers.items():
            started = time.perf_counter()
            one.step(batches[step % len(batches)])
            one.n_training_steps += 1
            seconds[kind].append(time.perf_counter() - started)
    rates = {kind: len(batches[0]) / statistics.median(times[3:]) for kind, times in seconds.items()}
    print(f"{describe()}, {detect().precision}")
    for kind, rate in rates.items():
        print(f"{kind:8} {rate:8,.0f} tokens/s")
    print(f"ratio    {rates['lineup'] / rates['saelens']:8.2f}")


if __name__ == "__main__":
    main()
