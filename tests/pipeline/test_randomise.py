"""The law of every randomisation: what is drawn, with which moments, and which tensors it touches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from pipeline.models.anatomy import Anatomy
from pipeline.seeds import torch_generator
from pipeline.variants.randomise import (
    DISTRIBUTIONS,
    WeightTensor,
    moments,
    redraw_all,
    row_gaussian,
    semi_orthogonal,
    spectrum_preserving,
)
from tests.pipeline.made_variants import MODELS, TRANSFORMERS, Make, kept, made
from tests.pipeline.toy import toy_gemma, toy_gpt2, toy_llama, toy_mamba, toy_neox, toy_rwkv

INCL = "rerandomized_incl_embeddings"
MATCHED = [INCL, "scale:1", "residual_gain:1"]
MATCHED += [f"distribution:{name}" for name in ("uniform", "truncated_normal", "rademacher")]


def drawn(name: str, values: torch.Tensor) -> torch.Tensor:
    """What a distribution makes of a matrix."""
    redrawn = DISTRIBUTIONS[name][1](WeightTensor("w", "weight", values, Anatomy(toy_llama())), torch_generator(1))
    assert redrawn is not None
    return redrawn


# Moments and shapes of the distributions.


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", MATCHED)
def test_each_tensor_has_the_moments_that_it_had(make: Make, name: str) -> None:
    model = make()
    variant = made(model, name)
    for tensor, value in model.named_parameters():
        redrawn = variant.model.get_parameter(tensor)
        std = value.std(correction=0).item()
        error = std / value.numel() ** 0.5  # of a sample mean; of a sample deviation it is this over the root of 2
        assert abs(redrawn.mean() - value.mean()) <= 5 * error + 1e-7, tensor
        assert abs(redrawn.std(correction=0) - std) <= 5 * error + 1e-7, tensor


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(0.01, 10))
def test_a_redraw_is_gaussian_with_the_tensors_moments_and_not_its_shape(mean: float, std: float) -> None:
    signs = torch.tensor([-1.0, 1.0]).repeat(20_000) * std + mean  # two values only
    tensor = WeightTensor("w", "weight", signs.reshape(200, 200), Anatomy(toy_llama()))
    z = (redraw_all(tensor, torch_generator(1)).double().flatten() - mean) / std
    assert abs(z.mean()) < 0.03
    assert abs(z.std() - 1) < 0.03
    assert abs((z**4).mean() - 3) < 0.3  # a Gaussian's; two values have 1, a uniform has 1.8


@pytest.mark.parametrize(
    ("name", "largest", "fourth"),
    [
        ("uniform", 3**0.5, 9 / 5),
        ("rademacher", 1, 1),
        ("truncated_normal", 2 / 0.87963, 2.36),  # E z^4 = 3 - 2 (2^3 + 3 * 2) phi(2) / 0.9545 = 1.416, over 0.7737^2
        ("row_gaussian", None, 3),
    ],
)
def test_distributions_have_their_shape_at_the_tensors_moments(name: str, largest: float | None, fourth: float) -> None:
    values = torch.tensor([-1.0, 1.0]).repeat(80_000).reshape(400, 400) * 0.5 + 3
    z = (drawn(name, values).flatten() - 3) / 0.5
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert abs((z.double() ** 4).mean() - fourth) < 0.05
    if largest is not None:
        assert z.abs().max() <= largest + 1e-4
        assert z.abs().max() > 0.99 * largest


def test_rademacher_has_two_values() -> None:
    assert drawn("rademacher", torch.arange(64.0).view(8, 8)).unique().tolist() == pytest.approx(
        [31.5 - (4095 / 12) ** 0.5, 31.5 + (4095 / 12) ** 0.5]  # 0 to 63 has the variance (64^2 - 1) / 12
    )


def test_moments_are_those_of_the_entries_themselves() -> None:
    # mean of 1, 2, 3, 6 is 3; squared deviations 4, 1, 0, 9 have the mean 3.5
    assert moments(torch.tensor([[1.0, 2.0], [3.0, 6.0]])) == pytest.approx((3.0, 3.5**0.5))


@pytest.mark.parametrize("make", MODELS)
def test_permuted_keeps_the_entries_and_not_their_order(make: Make) -> None:
    model = make()
    variant = made(model, "permuted")
    for name, value in model.named_parameters():
        shuffled = variant.model.get_parameter(name)
        assert torch.equal(shuffled.flatten().sort().values, value.flatten().sort().values), name
        assert not torch.equal(shuffled, value), name


def test_rows_keep_their_own_moments() -> None:
    matrix = (
        torch.randn(6, 40_000, generator=torch_generator(0)) * torch.arange(1.0, 7)[:, None]
        + torch.arange(6.0)[:, None]
    )
    redrawn = row_gaussian(matrix, torch_generator(1))
    torch.testing.assert_close(redrawn.mean(1), matrix.mean(1), atol=0.15, rtol=0)
    torch.testing.assert_close(redrawn.std(1), matrix.std(1), atol=0, rtol=0.02)
    assert abs(torch.corrcoef(torch.stack([redrawn[0], matrix[0]]))[0, 1]) < 0.03


def test_rows_are_outputs_also_where_a_model_stores_them_as_columns() -> None:
    model = toy_gpt2()
    stored = model.transformer.h[0].mlp.c_fc.weight  # 32 inputs x 128 outputs
    stored[:, 0] = 5.0
    redrawn = made(model, "distribution:row_gaussian").model.transformer.h[0].mlp.c_fc.weight
    assert torch.equal(redrawn[:, 0], stored[:, 0])
    assert not torch.equal(redrawn[0], stored[0])


@pytest.mark.parametrize("shape", [(64, 24), (24, 64), (32, 32), (9000, 8)])
def test_semi_orthogonal_matrices_are_orthogonal_at_the_trained_scale(shape: tuple[int, int]) -> None:
    values = torch.randn(shape, generator=torch_generator(0)) * 0.3
    redrawn = semi_orthogonal(values, torch_generator(1))
    assert redrawn.shape == shape
    gram = redrawn @ redrawn.T if shape[0] < shape[1] else redrawn.T @ redrawn
    size = moments(values)[1] ** 2 * max(shape)
    torch.testing.assert_close(gram / size, torch.eye(min(shape)), atol=1e-5, rtol=1e-5)
    assert moments(redrawn)[1] == pytest.approx(moments(values)[1], rel=0.01)


@pytest.mark.parametrize("shape", [(64, 24), (24, 64), (32, 32), (9000, 8)])
def test_spectrum_preserving_keeps_singular_values_and_not_their_vectors(shape: tuple[int, int]) -> None:
    values = torch.randn(shape, generator=torch_generator(0)) @ torch.diag(torch.linspace(0.1, 3, shape[1]))
    redrawn = spectrum_preserving(values, torch_generator(1))
    torch.testing.assert_close(torch.linalg.svdvals(redrawn), torch.linalg.svdvals(values), atol=1e-4, rtol=1e-4)
    leading = torch.linalg.svd(redrawn).Vh[0] @ torch.linalg.svd(values).Vh[0]
    assert abs(leading) < 0.6


def test_orthogonal_matrices_are_drawn_uniformly() -> None:
    """The first entry of a plain QR, for one, is never positive."""
    firsts = [semi_orthogonal(torch.randn(2, 2), torch_generator(seed))[0, 0] for seed in range(200)]
    assert 60 < sum(first > 0 for first in firsts) < 140


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", ["row_gaussian", "semi_orthogonal", "spectrum_preserving"])
def test_what_is_no_matrix_gets_a_gaussian(make: Make, name: str) -> None:
    """The same numbers as any sweep of that seed would draw: a Gaussian's, of the tensor's own moments."""
    model = make()
    variant = made(model, f"distribution:{name}").model
    anatomy = Anatomy(model)
    for tensor, value in model.named_parameters():
        plain = redraw_all(
            WeightTensor(tensor, "weight", value, anatomy), torch_generator(0, "variant", "distribution", tensor)
        )
        assert torch.equal(variant.get_parameter(tensor), plain) == (tensor not in anatomy.matrices), tensor


@pytest.mark.parametrize("make", MODELS)
def test_matrices_of_whole_models_are_orthogonal_or_keep_their_spectra(make: Make) -> None:
    model = make()
    orthogonal = made(model, "distribution:semi_orthogonal").model
    spectral = made(model, "distribution:spectrum_preserving").model
    for name in Anatomy(model).matrices:
        values = torch.linalg.svdvals(orthogonal.get_parameter(name))
        torch.testing.assert_close(values, values[:1].expand_as(values), rtol=1e-4, atol=1e-7)
        spectra = [torch.linalg.svdvals(of.get_parameter(name)) for of in (spectral, model)]
        torch.testing.assert_close(*spectra, rtol=1e-4, atol=1e-6)


# Sweeps: one family's members share their draws.


@pytest.mark.parametrize("make", MODELS)
def test_scale_multiplies_deviations_and_leaves_means(make: Make) -> None:
    model = make()
    half, double = made(model, "scale:0.5").model, made(model, "scale:2").model
    for name, value in model.named_parameters():
        mean = value.double().mean()
        narrow, wide = half.get_parameter(name).double() - mean, double.get_parameter(name).double() - mean
        torch.testing.assert_close(wide, 4 * narrow, rtol=1e-3, atol=1e-5)
        ratio = narrow.square().mean().sqrt() / value.double().std(correction=0)
        assert abs(ratio - 0.5) <= 0.5 * 5 / (2 * value.numel()) ** 0.5, name


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("norms", ["keep", "resample"])
@pytest.mark.parametrize("family", ["embedding_gain", "residual_gain"])
def test_gains_touch_only_what_they_say(make: Make, norms: str, family: str) -> None:
    model = make()
    plain, gained = (made(model, f"{family}:{factor}", norms=norms).model for factor in (1, 3))
    anatomy = Anatomy(model)
    inputs = {name for name, end in anatomy.ends.items() if end != "unembedding"}
    touched = inputs if family == "embedding_gain" else set(anatomy.writers)
    for name, value in plain.named_parameters():
        if name in touched:
            added = anatomy.writers.get(name, 0.0)
            torch.testing.assert_close(gained.get_parameter(name) + added, 3 * (value + added))
        else:
            assert torch.equal(gained.get_parameter(name), value), name


@pytest.mark.parametrize("make", MODELS)
def test_a_residual_gain_multiplies_what_the_first_branch_writes(make: Make) -> None:
    """Seen in the stream: with its other branches silenced, a first block adds three times as much."""

    def added(factor: float) -> torch.Tensor:
        variant = made(make(), f"residual_gain:{factor}").model
        anatomy = Anatomy(variant)
        first, *others = dict.fromkeys(name.rpartition(".")[0] for name in anatomy.writers)
        writer = variant.get_submodule(first)
        seen = []
        hook = writer.register_forward_hook(lambda _module, _arguments, output: seen.append(output))
        variant(torch.tensor([[5, 300, 7]]), use_cache=False)
        hook.remove()
        assert others
        return torch.as_tensor(seen[0])

    torch.testing.assert_close(added(3), 3 * added(1), rtol=1e-4, atol=1e-5)


def test_a_factor_on_gemmas_projections_alone_would_change_nothing() -> None:
    """Why a gain goes to the norm behind them."""
    model = toy_gemma()
    tokens = torch.tensor([[5, 300, 7]])
    before = model(tokens).logits
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(10)
        layer.self_attn.o_proj.weight.mul_(10)
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-3, atol=1e-3)
    plain, gained = (made(model, f"residual_gain:{factor}").model(tokens).logits for factor in (1, 10))
    assert not torch.allclose(plain, gained, atol=0.1)


# Some tensors only: the rest is kept bit by bit.


@pytest.mark.parametrize("make", [*TRANSFORMERS, toy_rwkv])
@pytest.mark.parametrize(("name", "branch"), [("attention_only", "attention"), ("mlp_only", "MLP")])
def test_only_a_branch_is_redrawn(make: Make, name: str, branch: str) -> None:
    model = make()
    inside = Anatomy(model).branch("attention" if branch == "attention" else "MLP")
    assert kept(model, made(model, name)) == {tensor: tensor not in inside for tensor, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["attention_only", "mlp_only"])
def test_a_model_without_branches_of_that_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="MambaForCausalLM has no module inside its blocks whose class is called"):
        made(toy_mamba(), name)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("first", [0, 1])
def test_layers_from_redraws_those_blocks(make: Make, first: int) -> None:
    model = make()
    blocks = Anatomy(model).block_of
    expected = {name: blocks.get(name, -1) < first for name, _ in model.named_parameters()}
    assert kept(model, made(model, f"layers_from:{first}")) == expected


def test_the_same_layer_is_redrawn_alike_wherever_the_redraw_begins() -> None:
    early, late = (made(toy_llama(), f"layers_from:{first}").model for first in (1, 2))
    assert torch.equal(early.model.layers[2].mlp.up_proj.weight, late.model.layers[2].mlp.up_proj.weight)


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers_from:3: the model has no layer 3; allowed: 0 to 2\."):
        made(toy_llama(), "layers_from:3")


@pytest.mark.parametrize("make", MODELS)
def test_random_embeddings_redraw_the_token_embedding_alone(make: Make) -> None:
    model = make()
    variant = made(model, "random_embeddings")
    token = {name for name, end in Anatomy(model).ends.items() if end == "token"}
    assert len(token) == 1
    assert kept(model, variant) == {name: name not in token for name, _ in model.named_parameters()}
    assert variant.noise is None


def test_an_unembedding_of_its_own_keeps_its_plain_draw_under_an_embedding_gain() -> None:
    plain, gained = (made(toy_neox(), f"embedding_gain:{factor}").model for factor in (1, 3))
    assert torch.equal(plain.get_output_embeddings().weight, gained.get_output_embeddings().weight)
    torch.testing.assert_close(gained.get_input_embeddings().weight, 3 * plain.get_input_embeddings().weight)
