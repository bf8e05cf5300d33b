"""The variants: what is redrawn, with which moments, and what stays as it was trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from pipeline.errors import LineupError
from pipeline.models import LoadedModel, ModelInfo, bridge
from pipeline.seeds import torch_generator
from pipeline.store import write_study
from pipeline.variants import VARIANTS, WeightTensor, make_variant, moments, redraw_all, tensor_kinds, tensor_table
from tests.pipeline.toy import toy_gpt2, toy_llama, toy_loaded, toy_neox, toy_tokenizer

MODELS = [toy_llama, toy_gpt2, toy_neox]
RANDOM = ["rerandomized_incl_embeddings", "rerandomized_excl_embeddings"]
TOKENS = torch.tensor([[0, 5, 300, 5, 5, 120], [9, 8, 7, 6, 5, 399]])

Make = Callable[..., PreTrainedModel]


def loaded(model: PreTrainedModel) -> LoadedModel:
    info = ModelInfo("toy", "code", type(model).__name__, 0, 0, 0, 0, "")
    return LoadedModel(model, toy_tokenizer(), info)


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, bool]:
    assert a.keys() == b.keys()
    return {name: torch.equal(value, b[name]) for name, value in a.items()}


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_trained_model_is_not_harmed(make: Make, name: str) -> None:
    model = make()
    before = state(model)
    variant = make_variant(loaded(model), name, seed=0)
    with torch.no_grad():
        next(variant.model.parameters()).zero_()
    assert all(same(before, state(model)).values())


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", ["trained", "control"])
def test_trained_and_control_have_the_trained_weights(make: Make, name: str) -> None:
    model = make()
    variant = make_variant(loaded(model), name, seed=0)
    assert all(same(state(model), state(variant.model)).values())
    assert not any(record.randomised for record in variant.records)


@pytest.mark.parametrize("make", MODELS)
def test_every_tensor_is_redrawn_or_all_but_the_embeddings(make: Make) -> None:
    model = make()
    kinds = tensor_kinds(model)
    everything = same(state(model), state(make_variant(loaded(model), RANDOM[0], seed=0).model))
    assert not any(everything.values())
    blocks = same(state(model), state(make_variant(loaded(model), RANDOM[1], seed=0).model))
    assert blocks == {name: kind == "embedding" for name, kind in kinds.items()}


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", RANDOM)
def test_norms_are_kept_when_asked(make: Make, name: str) -> None:
    model = make()
    kept = same(state(model), state(make_variant(loaded(model), name, seed=0, norms="keep").model))
    kinds = tensor_kinds(model)
    assert all(kept[tensor] for tensor in kept if kinds[tensor] == "norm")
    assert not any(kept[tensor] for tensor in kept if kinds[tensor] in ("weight", "bias"))


@pytest.mark.parametrize("make", MODELS)
def test_each_tensor_has_the_moments_that_it_had(make: Make) -> None:
    model = make()
    variant = make_variant(loaded(model), RANDOM[0], seed=0)
    for name, value in model.named_parameters():
        redrawn = variant.model.get_parameter(name)
        std = value.std(correction=0).item()
        error = std / value.numel() ** 0.5  # of a sample mean; of a sample deviation it is this over the root of 2
        assert abs(redrawn.mean() - value.mean()) < 5 * error, name
        assert abs(redrawn.std(correction=0) - std) < 5 * error, name


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(0.01, 10))
def test_a_redraw_is_gaussian_with_the_tensors_moments_and_not_its_shape(mean: float, std: float) -> None:
    signs = torch.tensor([-1.0, 1.0]).repeat(20_000) * std + mean  # two values only
    redrawn = redraw_all(WeightTensor("w", "weight", signs.reshape(200, 200)), torch_generator(1))
    assert redrawn is not None
    z = (redrawn.double().flatten() - mean) / std
    assert abs(z.mean()) < 0.03
    assert abs(z.std() - 1) < 0.03
    assert abs((z**4).mean() - 3) < 0.3  # a Gaussian's; two values have 1, a uniform has 1.8


def test_moments_are_those_of_the_entries_themselves() -> None:
    # mean of 1, 2, 3, 6 is 3; squared deviations 4, 1, 0, 9 have the mean 3.5
    assert moments(torch.tensor([[1.0, 2.0], [3.0, 6.0]])) == pytest.approx((3.0, 3.5**0.5))


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_seed_gives_the_same_tensors_and_another_seed_others(name: str) -> None:
    def hashes(seed: int) -> list[str]:
        records = make_variant(loaded(toy_gpt2()), name, seed).records
        return [record.sha256 for record in records if record.randomised]

    assert hashes(0) == hashes(0)
    assert not set(hashes(0)) & set(hashes(1))


def test_a_tensors_values_do_not_depend_on_the_other_tensors() -> None:
    shallow = make_variant(loaded(toy_llama(num_hidden_layers=1)), RANDOM[0], seed=0)
    trained = toy_llama()
    for name, value in toy_llama(num_hidden_layers=1).named_parameters():
        trained.get_parameter(name).copy_(value)  # the same tensor in a deeper model
    deep = make_variant(loaded(trained), RANDOM[0], seed=0)
    for name, value in shallow.model.named_parameters():
        assert torch.equal(value, deep.model.get_parameter(name)), name


def test_tensors_of_one_shape_are_drawn_apart() -> None:
    model = make_variant(loaded(toy_llama()), RANDOM[0], seed=0).model
    queries = torch.stack([layer.self_attn.q_proj.weight.flatten() for layer in model.model.layers])
    between = torch.corrcoef(queries)[~torch.eye(3, dtype=torch.bool)]
    assert between.abs().max() < 0.15  # 1,024 pairs: a standard error of 0.03


@pytest.mark.parametrize("name", VARIANTS)
def test_tied_embeddings_stay_tied_and_are_one_tensor(name: str) -> None:
    variant = make_variant(loaded(toy_llama()), name, seed=0)
    assert variant.model.get_output_embeddings().weight is variant.model.get_input_embeddings().weight
    assert [record.name for record in variant.records if record.kind == "embedding"] == ["model.embed_tokens.weight"]


def test_kinds_of_a_llama() -> None:
    kinds = tensor_kinds(toy_llama(num_hidden_layers=1, tie_word_embeddings=False))
    layer = "model.layers.0"
    assert kinds == {
        "model.embed_tokens.weight": "embedding",
        "lm_head.weight": "embedding",
        "model.norm.weight": "norm",
        f"{layer}.input_layernorm.weight": "norm",
        f"{layer}.post_attention_layernorm.weight": "norm",
        **{f"{layer}.self_attn.{part}_proj.weight": "weight" for part in "qkvo"},
        **{f"{layer}.mlp.{part}_proj.weight": "weight" for part in ("gate", "up", "down")},
    }


def test_kinds_of_a_gpt2() -> None:
    kinds = tensor_kinds(toy_gpt2(n_layer=1))
    assert {name for name, kind in kinds.items() if kind == "embedding"} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    assert {name for name, kind in kinds.items() if kind == "norm"} == {
        f"transformer.{place}.{part}" for place in ("h.0.ln_1", "h.0.ln_2", "ln_f") for part in ("weight", "bias")
    }
    modules = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert {name for name, kind in kinds.items() if kind == "bias"} == {f"transformer.h.0.{m}.bias" for m in modules}


def test_kinds_of_a_gpt_neox() -> None:
    model = toy_neox(num_hidden_layers=1)
    kinds = tensor_kinds(model)
    ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert ends[0] is not ends[1]
    for name, parameter in model.named_parameters():
        assert (kinds[name] == "embedding") == any(parameter is end for end in ends), name
    assert sum(kind == "norm" for kind in kinds.values()) == 6  # two in the block and a final one, weight and bias each
    assert sum(kind == "bias" for kind in kinds.values()) == 4


# Noise in place of the embedding.


@pytest.mark.parametrize("make", MODELS)
def test_noise_is_standard_normal_and_new_at_every_occurrence_and_every_pass(make: Make) -> None:
    variant = make_variant(loaded(make()), "control", seed=0)
    assert variant.noise is not None
    embedding = variant.model.get_input_embeddings()
    same_token = torch.full((32, 64), 7)
    with variant.noise.active(torch_generator(0)):
        first, second = embedding(same_token), embedding(same_token)
    assert first.shape == (32, 64, 32)
    assert abs(first.mean()) < 0.02
    assert abs(first.std() - 1) < 0.02
    rows = torch.cat([first, second]).flatten(0, 1)
    assert len(rows.unique(dim=0)) == 2 * 32 * 64
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.02


def test_the_generator_alone_decides_the_noise_and_the_text_nothing() -> None:
    variant = make_variant(loaded(toy_llama()), "control", seed=0)
    assert variant.noise is not None

    def run(tokens: torch.Tensor, *names: object) -> torch.Tensor:
        assert variant.noise is not None
        with variant.noise.active(torch_generator(0, *names)):
            logits: torch.Tensor = variant.model(tokens).logits
        return logits

    assert torch.equal(run(TOKENS, "a"), run(TOKENS, "a"))
    assert torch.equal(run(TOKENS, "a"), run(TOKENS.flip(1), "a"))
    assert not torch.equal(run(TOKENS, "a"), run(TOKENS, "b"))


def test_the_text_comes_back_when_the_noise_ends_even_by_an_error() -> None:
    model = toy_llama()
    variant = make_variant(loaded(model), "control", seed=0)
    assert variant.noise is not None
    with pytest.raises(RuntimeError, match="out of"), variant.noise.active(torch_generator(0)):
        raise RuntimeError("out of memory")
    assert torch.equal(variant.model(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("make", MODELS)
def test_noise_reaches_the_model_inside_transformer_lens(tmp_path: Path, make: Make) -> None:
    trained = toy_loaded(tmp_path, make())
    variant = make_variant(trained, "control", seed=0)
    wrapped = bridge(replace(trained, model=variant.model))
    assert variant.noise is not None
    with variant.noise.active(torch_generator(0)):
        _, cache = wrapped.run_with_cache(TOKENS, prepend_bos=False)
    noise = torch.randn(*TOKENS.shape, 32, generator=torch_generator(0))
    assert torch.equal(cache["hook_embed"], noise)
    with variant.noise.active(torch_generator(0)):
        plain = variant.model(TOKENS, output_hidden_states=True)
    torch.testing.assert_close(cache["blocks.0.hook_resid_post"], plain.hidden_states[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["trained", *RANDOM])
def test_only_the_control_has_noise(name: str) -> None:
    assert make_variant(loaded(toy_llama()), name, seed=0).noise is None


# The table of variants, and the rows that are kept.


def test_an_unknown_variant_is_answered_with_the_known_ones() -> None:
    with pytest.raises(LineupError, match=rf"Unknown variant 'step00'\. Known: {', '.join(VARIANTS)}\."):
        make_variant(loaded(toy_llama()), "step00", seed=0)


def test_every_row_stands_under_its_name_and_one_is_the_trained_model() -> None:
    assert all(name == row.name and row.label and row.description for name, row in VARIANTS.items())
    assert [name for name, row in VARIANTS.items() if row.is_trained] == ["trained"]


def test_records_say_what_the_model_holds_and_fit_the_database(tmp_path: Path) -> None:
    variant = make_variant(loaded(toy_gpt2()), RANDOM[1], seed=0)
    write_study(tmp_path / "study.duckdb", {"tensors": tensor_table(RANDOM[1], variant.records)})
    with duckdb.connect(str(tmp_path / "study.duckdb"), read_only=True) as connection:
        rows = connection.execute("SELECT name, kind, randomised, shape, mean, std, sha256 FROM tensors").fetchall()
    parameters = dict(variant.model.named_parameters())
    assert [row[0] for row in rows] == list(parameters)
    for name, kind, randomised, shape, mean, std, sha256 in rows:
        value = parameters[name]
        assert randomised == (kind != "embedding")
        assert tuple(shape) == value.shape
        assert (mean, std) == pytest.approx((value.mean().item(), value.std(correction=0).item()), abs=1e-6)
        assert len(sha256) == 64
    assert len({row[-1] for row in rows}) == len(rows)
