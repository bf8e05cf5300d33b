"""Fresh initialisations: the model's own, and schemes with the widths that their papers give."""

import math

import pytest
import torch

from pipeline.models.anatomy import Anatomy
from pipeline.seeds import derive_seed
from pipeline.variants.initialise import SCHEMES, fresh, matrix_of
from tests.pipeline.made_variants import MODELS, Make, made, state
from tests.pipeline.toy import toy_gpt2, toy_llama, toy_mamba, toy_neox

D, LAYERS, BRANCHES = 32, 3, 6  # of toy_llama
WIDTHS = {  # of its down projection (64 inputs, 32 outputs, writes) and of its up projection (32 inputs, 64 outputs)
    "gpt2": (0.02 / math.sqrt(BRANCHES), 0.02),
    "small": (2 / (LAYERS * math.sqrt(D)), math.sqrt(2 / (5 * D))),
    "xavier_normal": (math.sqrt(2 / 96), math.sqrt(2 / 96)),
    "xavier_uniform": (math.sqrt(2 / 96), math.sqrt(2 / 96)),
    "kaiming_normal": (math.sqrt(2 / 64), math.sqrt(2 / 32)),
    "kaiming_uniform": (math.sqrt(2 / 64), math.sqrt(2 / 32)),
}


@pytest.mark.parametrize("make", MODELS)
def test_own_is_what_transformers_makes_of_the_configuration(make: Make) -> None:
    model = make()
    ours = made(model, "init:own").model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "variant", "init"))
        again = type(model)(model.config)
    assert all(torch.equal(value, ours.get_parameter(name)) for name, value in again.named_parameters())
    for name in Anatomy(model).matrices:
        assert not torch.equal(model.get_parameter(name), ours.get_parameter(name)), name


@pytest.mark.parametrize("make", MODELS)
def test_own_is_what_init_weights_leaves_alone(make: Make) -> None:
    """Run afresh on every module of the result, `_init_weights` gives tensors of the same moments."""
    ours = made(make(), "init:own").model
    before = state(ours)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ours.apply(lambda module: ours._init_weights(module.requires_grad_(False)))
    changed = 0
    for name, value in ours.named_parameters():
        std = before[name].std(correction=0)
        error = std / value.numel() ** 0.5
        assert abs(value.mean() - before[name].mean()) <= 6 * error + 1e-6, name
        assert abs(value.std(correction=0) - std) <= 6 * error + 1e-6, name
        changed += not torch.equal(value, before[name])
    assert changed


def test_the_global_generator_is_put_back() -> None:
    before = torch.random.get_rng_state()
    fresh(toy_llama(), 1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("scheme", WIDTHS)
def test_schemes_have_the_widths_of_their_papers(scheme: str) -> None:
    model = made(toy_llama(), f"init:{scheme}").model
    down, up = (torch.cat([getattr(layer.mlp, part).weight.flatten() for layer in model.model.layers])
                for part in ("down_proj", "up_proj"))  # fmt: skip
    for values, std in zip((down, up), WIDTHS[scheme], strict=True):
        assert values.mean().abs() < 5 * std / len(values) ** 0.5
        assert values.std(correction=0).item() == pytest.approx(std, rel=5 / (2 * len(values)) ** 0.5)
        assert (values.abs().max() <= 3**0.5 * std * 1.0001) == scheme.endswith("uniform")


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("scheme", WIDTHS)
def test_every_matrix_follows_the_scheme_and_all_else_the_models_own_code(make: Make, scheme: str) -> None:
    model = make()
    ours, own = made(model, f"init:{scheme}").model, made(model, "init:own").model
    anatomy = Anatomy(model)
    rule = SCHEMES[scheme].std
    assert rule is not None
    for name, value in ours.named_parameters():
        if name in anatomy.matrices:
            std = rule(matrix_of(name, value, anatomy))
            assert value.std(correction=0).item() == pytest.approx(std, rel=6 / (2 * value.numel()) ** 0.5), name
        else:
            assert torch.equal(value, own.get_parameter(name)), name


def test_inputs_and_outputs_are_told_apart_also_where_rows_are_inputs() -> None:
    for make, name in (
        (toy_gpt2, "transformer.h.0.mlp.c_fc.weight"),
        (toy_neox, "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"),
    ):
        model = make()
        matrix = matrix_of(name, model.get_parameter(name), Anatomy(model))
        assert (matrix.inputs, matrix.outputs) == (32, 128 if make is toy_gpt2 else 64)
        assert (matrix.d_model, matrix.n_layers, matrix.branches, matrix.writes) == (32, 2, 4, False)


def test_a_mamba_has_one_branch_a_layer_and_keeps_its_own_start() -> None:
    model = made(toy_mamba(), "init:gpt2").model
    mixer = model.backbone.layers[0].mixer
    assert mixer.out_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.1)
    torch.testing.assert_close(mixer.A_log, torch.arange(1.0, 5).log().expand(64, 4))


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("scheme", ["own", "small"])
def test_trained_norms_are_kept_when_asked_and_fresh_otherwise(make: Make, scheme: str) -> None:
    model = make()
    kinds = Anatomy(model).kinds
    for norms in ("keep", "resample"):
        ours = made(model, f"init:{scheme}", norms=norms).model
        for name, value in model.named_parameters():
            if kinds[name] == "norm":
                found = ours.get_parameter(name)
                assert torch.equal(found, value) == (norms == "keep"), name
                assert norms == "keep" or len(found.unique()) == 1, name
