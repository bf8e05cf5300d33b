"""The baselines: nothing learnt, half learnt, or learnt without an SAE; all in SAELens' format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE

from core.errors import UserError
from pipeline.latents import codes
from pipeline.saes.architectures import train
from pipeline.saes.training import new_sae, principal_components
from tests.pipeline.sae_inputs import CPU, activations, on_corpus, request, small, unexplained

BASELINES = {"untrained": 64, "frozen_decoder": 64, "pca": 32, "neurons": 32}
"""And how many latents they have where d_sae is 64 and d_in 16."""


@pytest.mark.parametrize("architecture", BASELINES)
def test_a_baseline_is_an_sae_like_others(architecture: str, tmp_path: Path) -> None:
    x = activations()
    made = train(x, small(architecture=architecture), {}, 1, CPU)
    facts = made.save(tmp_path)
    assert (facts["d_in"], facts["d_sae"], facts["k"]) == (16, BASELINES[architecture], 4)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == "topk"
    assert loaded.cfg.metadata.lineup_architecture == architecture
    assert torch.allclose(loaded.W_dec.norm(dim=-1) * made.normalisation, torch.ones(facts["d_sae"]), atol=1e-5)
    latents = loaded.encode(x).detach()
    found = codes.encode(loaded, on_corpus(x), 4_000, CPU, lambda *_: None)
    assert torch.allclose(torch.from_numpy(found.toarray()[::2]), latents, atol=1e-5)
    # the units of latents: what each adds to the scaled reconstruction
    assert torch.allclose(made.sae.encode(x), latents, atol=1e-5)


def test_the_untrained_sae_has_taken_no_step_from_saelens_initial_weights() -> None:
    x = activations()
    made = train(x, small(architecture="untrained"), {}, 1, CPU)
    start = new_sae(request(x, small()), "topk")
    assert torch.allclose(made.sae.W_dec * made.normalisation, start.W_dec, atol=1e-6)
    assert torch.allclose(made.sae.W_enc / made.normalisation, start.W_dec.T, atol=1e-6)
    assert torch.allclose(made.sae.b_dec, x.mean(0), atol=1e-4)
    assert (made.steps, made.tokens) == (0, 0)


def test_the_frozen_decoder_stays_and_the_encoder_learns() -> None:
    x = activations()
    untrained, frozen, trained = (
        train(x, small(architecture=name, epochs=10), {}, 1, CPU) for name in ("untrained", "frozen_decoder", "topk")
    )
    assert torch.allclose(frozen.sae.W_dec, untrained.sae.W_dec, atol=1e-5)
    assert not torch.allclose(frozen.sae.W_enc, untrained.sae.W_enc, atol=1e-2)
    assert not torch.allclose(frozen.sae.b_dec, untrained.sae.b_dec, atol=1e-2)
    errors = [unexplained(x, made.sae.decode(made.sae.encode(x))) for made in (untrained, frozen, trained)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]


def test_principal_components_are_those_of_the_singular_value_decomposition() -> None:
    x = activations()
    found = principal_components(request(x, small(architecture="pca"))).numpy()
    expected = np.linalg.svd((x - x.mean(0)).numpy().astype(np.float64), full_matrices=False)[2]
    assert np.abs(found @ expected.T) == pytest.approx(np.eye(16), abs=1e-4)
    assert (found[np.arange(16), np.abs(found).argmax(1)] > 0).all()


@pytest.mark.parametrize("architecture", ["pca", "neurons"])
def test_a_token_is_its_k_largest_projections_whatever_their_sign(architecture: str) -> None:
    x = activations(200)
    made = train(x, small(architecture=architecture, k=3), {}, 1, CPU).sae
    basis = made.W_dec.detach()[::2]
    basis = basis / basis.norm(dim=-1, keepdim=True)
    if architecture == "neurons":
        assert torch.equal(basis, torch.eye(16))
    projections = (x - x.mean(0)) @ basis.T
    kept = projections.abs() >= projections.abs().topk(3, dim=-1).values[:, -1:]
    expected = (projections * kept) @ basis + x.mean(0)
    assert torch.allclose(made.decode(made.encode(x)), expected, atol=1e-4)
    whole = train(x, small(architecture=architecture, k=16), {}, 1, CPU).sae
    assert torch.allclose(whole.decode(whole.encode(x)), x, atol=1e-4)


def test_no_basis_reconstructs_better_than_principal_components_on_gaussian_activations() -> None:
    x = torch.randn(5_000, 16, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 17) ** 2)
    x = x @ torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    pca, neurons = (train(x, small(architecture=name), {}, 1, CPU).sae for name in ("pca", "neurons"))
    assert unexplained(x, pca.decode(pca.encode(x))) < 0.5 * unexplained(x, neurons.decode(neurons.encode(x)))


@pytest.mark.parametrize("architecture", ["pca", "neurons"])
def test_a_k_above_the_dimensions_is_said(architecture: str) -> None:
    with pytest.raises(UserError, match=rf"k is 17, but {architecture} has only 16 directions"):
        train(activations(), small(architecture=architecture, k=17), {}, 1, CPU)
