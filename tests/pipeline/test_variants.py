"""The variants: what is redrawn, with which moments, and what stays as it was trained."""

from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedModel

from core.errors import UserError
from pipeline.database import write_study
from pipeline.models.anatomy import Anatomy, tensor_kinds
from pipeline.models.hooks import value_of
from pipeline.seeds import torch_generator
from pipeline.variants.make import make_variant, tensor_table
from pipeline.variants.randomise import matched, moments
from pipeline.variants.table import VARIANTS, find_variant
from tests.pipeline.made_variants import MODELS, NAMES, REDRAWN, Make, in_memory, kept, made, state
from tests.pipeline.toy import bridge, toy_gemma, toy_gpt2, toy_llama, toy_loaded, toy_neox

INCL, EXCL = "rerandomized_incl_embeddings", "rerandomized_excl_embeddings"
CONTROLS = ["control", "control_matched"]
TOKENS = torch.tensor([[0, 5, 300, 5, 5, 120], [9, 8, 7, 6, 5, 399]])


@pytest.mark.parametrize("make", MODELS)
def test_the_trained_model_is_not_harmed_and_every_variant_runs(make: Make) -> None:
    model = make()
    before = state(model)
    for name in NAMES:
        if make.__name__ == "toy_mamba" and name in ("attention_only", "mlp_only"):
            continue
        variant = made(model, name).model
        assert variant(TOKENS, use_cache=False).logits.isfinite().all(), name
        with torch.no_grad():
            next(variant.parameters()).zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", ["trained", *CONTROLS])
def test_trained_and_controls_have_the_trained_weights(make: Make, name: str) -> None:
    model = make()
    variant = made(model, name)
    assert all(kept(model, variant).values())
    assert not any(record.randomised for record in variant.records)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", [INCL, "distribution:rademacher", "distribution:semi_orthogonal"])
def test_every_tensor_is_redrawn(make: Make, name: str) -> None:
    model = make()
    assert not any(kept(model, made(model, name)).values())


@pytest.mark.parametrize("make", MODELS)
def test_every_tensor_is_redrawn_but_the_embeddings(make: Make) -> None:
    model = make()
    assert kept(model, made(model, EXCL)) == {name: kind == "embedding" for name, kind in tensor_kinds(model).items()}


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", [INCL, EXCL, "permuted", "layers_from:0"])
def test_norms_are_kept_when_asked(make: Make, name: str) -> None:
    model = make()
    same = kept(model, made(model, name, norms="keep"))
    kinds = tensor_kinds(model)
    assert all(same[tensor] for tensor in same if kinds[tensor] == "norm")
    assert not any(same[tensor] for tensor in same if kinds[tensor] in ("weight", "bias"))


@pytest.mark.parametrize("name", REDRAWN)
def test_the_same_seed_gives_the_same_tensors_and_another_seed_others(name: str) -> None:
    def hashes(seed: int) -> list[str]:
        records = made(toy_gpt2(), name, seed).records
        drawn = [r for r in records if r.randomised and (r.kind in ("embedding", "weight") or "init" not in name)]
        assert drawn
        return [record.sha256 for record in drawn]

    assert hashes(0) == hashes(0)
    assert not set(hashes(0)) & set(hashes(1))


def test_a_tensors_values_do_not_depend_on_the_other_tensors() -> None:
    shallow = made(toy_llama(num_hidden_layers=1), INCL)
    trained = toy_llama()
    for name, value in toy_llama(num_hidden_layers=1).named_parameters():
        trained.get_parameter(name).copy_(value)  # the same tensor in a deeper model
    deep = made(trained, INCL)
    for name, value in shallow.model.named_parameters():
        assert torch.equal(value, deep.model.get_parameter(name)), name


def test_tensors_of_one_shape_are_drawn_apart() -> None:
    model = made(toy_llama(), INCL).model
    queries = torch.stack([layer.self_attn.q_proj.weight.flatten() for layer in model.model.layers])
    between = torch.corrcoef(queries)[~torch.eye(3, dtype=torch.bool)]
    assert between.abs().max() < 0.15  # 1,024 pairs: a standard error of 0.03


def test_variants_are_drawn_apart() -> None:
    names = [INCL, EXCL, "scale:1", "embedding_gain:1", "residual_gain:1", "attention_only"]
    queries = torch.stack(
        [made(toy_llama(), name).model.model.layers[0].self_attn.q_proj.weight.flatten() for name in names]
    )
    between = torch.corrcoef(queries)[~torch.eye(len(names), dtype=torch.bool)]
    assert between.abs().max() < 0.15


def test_the_draws_of_published_studies_stay_as_they_are() -> None:
    """Means of three tensors, as they were drawn when there were only four variants."""
    model = made(toy_llama(), INCL, seed=3).model
    names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]
    means = [model.get_parameter(name).mean().item() for name in names]
    assert means == pytest.approx([-0.0018454653, 0.0089653889, 1.0264861584], abs=1e-7)


@pytest.mark.parametrize("name", [*CONTROLS, INCL, EXCL, "permuted", "embedding_gain:2", "init:own", "init:small"])
@pytest.mark.parametrize("make", [toy_llama, toy_gemma])
def test_tied_embeddings_stay_tied_and_are_one_tensor(make: Make, name: str) -> None:
    variant = made(make(), name)
    assert variant.model.get_output_embeddings().weight is variant.model.get_input_embeddings().weight
    assert [record.name for record in variant.records if record.kind == "embedding"] == ["model.embed_tokens.weight"]


# The published first checkpoint.


def test_step0_is_the_checkpoint_that_the_loader_gives() -> None:
    first = toy_neox()
    first.get_output_embeddings().weight.mul_(2)
    asked = []

    def load(revision: str) -> PreTrainedModel:
        asked.append(revision)
        return first

    variant = make_variant(in_memory(toy_neox()), "step0", 0, "keep", load=load)
    assert asked == ["step0"]
    assert all(kept(first, variant).values())
    assert [record.name for record in variant.records if record.randomised] == ["lm_head.weight"]


def test_step0_is_refused_where_there_is_none_or_another_model() -> None:
    with pytest.raises(UserError, match="The variant step0 needs a model of the Hub that has a revision 'step0'"):
        made(toy_neox(), "step0")
    with pytest.raises(UserError, match="revision 'step0' has tensors of other names or shapes than the trained one"):
        made(toy_neox(), "step0", load=lambda _: toy_neox(num_hidden_layers=1))
    with pytest.raises(UserError, match="revision 'step0' holds the trained weights themselves"):
        made(toy_neox(), "step0", load=lambda _: toy_neox())


# Noise in place of the embedding.


@pytest.mark.parametrize("make", MODELS)
def test_noise_is_standard_normal_and_new_at_every_occurrence_and_every_pass(make: Make) -> None:
    variant = made(make(), "control")
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
    variant = made(toy_llama(), "control")
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
    variant = made(model, "control")
    assert variant.noise is not None
    with pytest.raises(RuntimeError, match="out of"), variant.noise.active(torch_generator(0)):
        raise RuntimeError("out of memory")
    assert torch.equal(variant.model(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("make", MODELS)
def test_noise_reaches_the_model_inside_transformer_lens(tmp_path: Path, make: Make) -> None:
    trained = toy_loaded(tmp_path, make())
    plain, variant = (make_variant(trained, "control", 0) for _ in range(2))
    wrapped = bridge(replace(trained, model=variant.model))
    assert variant.noise is not None
    assert plain.noise is not None
    with variant.noise.active(torch_generator(0)):
        _, cache = wrapped.run_with_cache(TOKENS, prepend_bos=False)
    noise = torch.randn(*TOKENS.shape, 32, generator=torch_generator(0))
    assert torch.equal(cache["hook_embed"], noise)
    seen = []
    Anatomy(plain.model).blocks[0].register_forward_hook(lambda _module, _arguments, output: seen.append(output))
    with plain.noise.active(torch_generator(0)):
        plain.model(TOKENS, use_cache=False)
    torch.testing.assert_close(cache["blocks.0.hook_resid_post"], value_of(seen[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_controls_have_noise(name: str) -> None:
    assert (made(toy_llama(), name).noise is not None) == find_variant(name).noise == (name in CONTROLS)


@pytest.mark.parametrize("make", MODELS)
def test_matched_noise_has_the_moments_of_what_the_embedding_returns(make: Make) -> None:
    model = make()
    model.get_input_embeddings().weight.add_(0.5)  # a mean that would be missed
    variant = made(model, "control_matched")
    assert variant.noise is not None
    outputs = model.get_input_embeddings()(torch.arange(400))
    with variant.noise.active(torch_generator(0)):
        noise = variant.model.get_input_embeddings()(torch.full((32, 64), 7))
    std = outputs.std().item()
    assert noise.std().item() == pytest.approx(std, rel=0.02)
    assert abs(noise.mean() - outputs.mean()) < 0.02 * std
    assert len(noise.flatten(0, 1).unique(dim=0)) == 32 * 64


def test_gemmas_embeddings_are_matched_as_they_enter_the_first_block() -> None:
    embedding = toy_gemma().get_input_embeddings()
    assert matched(embedding)[1] == pytest.approx(32**0.5 * moments(embedding.weight)[1])


@pytest.mark.parametrize("make", MODELS)
def test_the_first_block_sees_the_noise_itself(make: Make) -> None:
    """Also where the model scales what it looks up."""
    variant = made(make(), "control")
    assert variant.noise is not None
    seen = []
    block = Anatomy(variant.model).blocks[0]
    block.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    with variant.noise.active(torch_generator(0)):
        variant.model(TOKENS, use_cache=False)
    noise = torch.randn(*TOKENS.shape, 32, generator=torch_generator(0))
    positions = variant.model.transformer.wpe.weight[: TOKENS.shape[1]] if make is toy_gpt2 else 0
    torch.testing.assert_close(seen[0], noise + positions)


# The table of variants, and the rows that are kept.


def test_an_unknown_variant_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=rf"Unknown variant 'step00'\. Known: {', '.join(VARIANTS)}\."):
        made(toy_llama(), "step00")


def test_every_row_stands_under_its_name_and_one_is_the_trained_model() -> None:
    assert all(name == row.name and row.label and row.description for name, row in VARIANTS.items())
    rows = [find_variant(name) for name in NAMES]
    assert [row.name for row in rows] == NAMES
    assert [row.name for row in rows if row.is_trained] == ["trained"]
    assert [row.name for row in [*rows, find_variant("step0")] if not row.random] == ["trained", "step0"]
    assert len({row.label for row in rows}) == len({row.description for row in rows}) == len(rows)


def test_a_parameter_stands_in_name_label_and_description() -> None:
    row = find_variant("scale:0.5")
    assert (row.name, row.label) == ("scale:0.5", "Re-randomised, std × 0.5")
    assert "0.5 times its standard deviation" in row.description
    assert find_variant("distribution:truncated_normal").label == "Re-randomised, truncated normal"
    assert "small_init" in find_variant("init:small").description
    assert VARIANTS["scale:<s>"].label == "Re-randomised, std × <s>"
    assert VARIANTS["scale:<s>"].description.endswith(" Write scale:<s> with a number above 0 and at most 1e30.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scale", "Unknown variant 'scale' without a value: write scale:<s> with a number above 0 and at most 1e30."),
        ("scale:", "Unknown variant 'scale' without a value: write scale:<s> with a number above 0 and at most 1e30."),
        ("scale:wide", "Unknown variant 'scale:wide': write scale:<s> with a number above 0 and at most 1e30."),
        ("scale:0", "Unknown variant 'scale:0': write scale:<s> with a number above 0 and at most 1e30."),
        ("scale:-1", "Unknown variant 'scale:-1': write scale:<s> with a number above 0 and at most 1e30."),
        (
            "residual_gain:nan",
            "Unknown variant 'residual_gain:nan': write residual_gain:<s> with a number above 0 and at most 1e30.",
        ),
        (
            "embedding_gain:inf",
            "Unknown variant 'embedding_gain:inf': write embedding_gain:<s> with a number above 0 and at most 1e30.",
        ),
        ("layers_from:-1", "Unknown variant 'layers_from:-1': write layers_from:<l> with a layer, counted from 0."),
        (
            "init:step0",
            "Unknown variant 'init:step0': write init:<scheme> with one of own, gpt2, small, xavier_normal,",
        ),
        ("distribution:cauchy", "Unknown variant 'distribution:cauchy': write distribution:<d> with one of uniform,"),
        ("trained:1", "Unknown variant 'trained:1'. Known: trained, "),
        ("scale:<s>", "Unknown variant 'scale:<s>': write scale:<s> with a number above 0 and at most 1e30."),
    ],
)
def test_a_parameter_that_is_not_allowed_is_answered_with_what_is(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_variant(name)
    assert str(error.value).startswith(message)


def test_records_say_what_the_model_holds_and_fit_the_database(tmp_path: Path) -> None:
    variant = made(toy_gpt2(), EXCL)
    table = tensor_table(EXCL, variant.records)
    for column, value in {"model": "toy", "variant_seed": 0}.items():
        table = table.append_column(column, pa.array([value] * len(table)))
    write_study(tmp_path / "study.duckdb", {"tensors": table})
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
