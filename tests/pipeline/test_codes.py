"""Stored activations are those of SAELens' `encode` in float32, whichever precision picked them."""

import copy
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopK

from pipeline.hardware import Compute
from pipeline.latents import codes
from tests.pipeline.sae_inputs import CPU, activations, on_corpus

BFLOAT16 = Compute("cpu", bfloat16=True)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {"k": 4}),
    "topk that rescales": ("topk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
    "topk of raw input": ("topk", {"k": 4, "apply_b_dec_to_input": False}),
    "standard": ("standard", {}),
    "normalised by token": ("standard", {"normalize_activations": "layer_norm"}),
    "rescaled by token": ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
    "jumprelu": ("jumprelu", {}),
    "gated": ("gated", {}),
}


def made(architecture: str, settings: dict[str, Any]) -> SAE[Any]:
    """SAELens' SAE of 16 dimensions and 64 latents, in which no weight is constant."""
    kind, config = get_sae_class(architecture)
    sae = kind(config(d_in=16, d_sae=64, metadata=SAEMetadata(), **settings))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return sae.requires_grad_(False)


def unlimited(sae: Any) -> Any:
    """The same SAE without a limit to the number of active latents."""
    found = copy.deepcopy(sae)
    if isinstance(found.activation_fn, TopK):
        found.activation_fn = TopK(found.cfg.d_sae)
    return found


def found_on(sae: Any, x: torch.Tensor, compute: Compute) -> torch.Tensor:
    """The corpus' matrix without its dropped tokens, dense."""
    rows = codes.encode(copy.deepcopy(sae), on_corpus(x), 2 * len(x), compute, lambda *_: None).toarray()[::2]
    return torch.from_numpy(rows)


@pytest.mark.parametrize("compute", [CPU, BFLOAT16], ids=lambda compute: compute.precision)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_saelens_in_float32(kind: str, compute: Compute) -> None:
    x, sae = activations(), made(*KINDS[kind])
    found, expected = found_on(sae, x, compute), sae.encode(x)
    picked = found > 0
    assert torch.allclose(found[picked], unlimited(sae).encode(x)[picked], rtol=1e-4, atol=1e-5)
    assert (picked != (expected > 0)).float().mean() < (0.01 if compute.bfloat16 else 1e-4)
    assert picked.sum() > 2_000


def tied(values: torch.Tensor) -> float:
    """Share of latents, of those active often enough, whose 12th and 13th largest activations are the same."""
    largest = values.T.sort(descending=True).values
    often = largest[:, 12] > 0
    return float((largest[often, 11] == largest[often, 12]).float().mean())


def test_activations_that_tie_in_bfloat16_are_in_order() -> None:
    x, sae = activations(), made(*KINDS["topk"])
    with BFLOAT16.autocast():
        rough = sae.encode(x).float()
    assert tied(rough) > 0.05
    assert tied(found_on(sae, x, BFLOAT16)) == tied(sae.encode(x)) == 0


def test_what_only_rounding_made_active_is_left_out() -> None:
    sae = made("jumprelu", {})
    for parameter in sae.parameters():
        parameter.data.zero_()
    sae.W_enc.data[0] = 1
    sae.threshold.data[:] = 1 - 2**-11
    x = torch.zeros(1, 16)
    x[0, 0] = 1 - 2**-10  # which bfloat16 takes for 1
    with BFLOAT16.autocast():
        assert (sae.encode(x) > 0).all()
    assert found_on(sae, x, BFLOAT16).count_nonzero() == sae.encode(x).count_nonzero() == 0
