"""Logit effects: a case worked by hand, and latents that have none."""

import pytest
import torch

from pipeline.hardware import Compute
from pipeline.latents.logits import logit_effects


def test_effects_are_those_of_unit_rows_through_the_gain_and_latents_without_finite_ones_are_left_out() -> None:
    decoder = torch.tensor([[3.0, 0.0], [torch.nan, 1.0], [0.0, -2.0]])
    unembedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 5.0], [-1.0, 3.0]])
    found = logit_effects(decoder, torch.tensor([1.0, 10.0]), unembedding, 2, Compute("cpu", bfloat16=False))
    rows = {name: column.tolist() for name, column in found.items()}
    assert list(zip(rows["latent"], rows["sign"], strict=True)) == [(0, 1), (2, 1), (0, -1), (2, -1)]
    assert rows["tokens"] == [[2, 0], [0, 1], [3, 1], [2, 3]]
    assert rows["effects"] == [pytest.approx(e) for e in ([2, 1], [0, -10], [-1, 0], [-50, -30])]
