"""Running a variant: where activations are taken, which tokens are kept, and resumed files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import FalconConfig, FalconForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from core.errors import UserError
from pipeline import activations
from pipeline.config import Hook, hook_name
from pipeline.hardware import Compute
from pipeline.latents.logits import final_gain
from pipeline.manifest import note
from pipeline.models.hooks import blocks, check_hooks
from pipeline.models.load import LoadedModel
from pipeline.variants.make import make_variant
from tests.pipeline.toy import bridge, toy_gemma, toy_gpt2, toy_llama, toy_loaded, toy_mamba, toy_neox, toy_rwkv

CPU = Compute("cpu", bfloat16=False)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_loaded(tmp_path_factory.mktemp("model"))


SEQUENCES = torch.randint(5, 300, (70, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


def run(loaded: LoadedModel, name: str, folder: Path) -> Path:
    variant = make_variant(loaded, name, seed=0)
    activations.run_variant(variant, SEQUENCES, ["resid_post"], [0, 2], 1, 0, CPU, folder, lambda *_: None)
    return folder


def test_activations_are_the_models_own_hidden_states_without_the_first_position(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    folder = run(loaded, "trained", tmp_path)
    expected = loaded.model(SEQUENCES, output_hidden_states=True).hidden_states[1][:, 1:]
    found = activations.load(folder, 0, "resid_post", drop_positions=1)
    assert torch.allclose(found.values, expected.reshape(-1, 32), atol=1e-4)
    assert found.token[:16].tolist() == [*range(1, 16), 17]
    assert found.dropped_share == pytest.approx(1 / 16)


def pieces(loaded: LoadedModel, name: str = "trained", limit: float = 1e9, **more: Any) -> list[torch.Tensor]:
    variant = make_variant(loaded, name, seed=0)
    return list(activations.stream(variant, SEQUENCES, 2, "resid_post", 1, limit, 0, CPU, **more))


def test_a_stream_gives_what_a_run_leaves_in_files_piece_by_piece(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "PIECE_TOKENS", 20 * 16 + 5)
    found = pieces(loaded)
    assert [len(piece) for piece in found] == [300, 300, 300, 150]
    expected = activations.load(run(loaded, "trained", tmp_path), 2, "resid_post", drop_positions=1).values
    assert torch.allclose(torch.cat(found), expected, atol=1e-4)
    assert [len(piece) for piece in pieces(loaded, skip=3)] == [150]


def test_a_stream_leaves_outliers_out(loaded: LoadedModel) -> None:
    (whole,) = pieces(loaded)
    norms = whole.norm(dim=-1)
    limit = float(norms.median())
    (found,) = pieces(loaded, limit=limit)
    assert torch.equal(found, whole[norms <= limit])


def test_noise_is_fresh_in_every_piece_of_a_stream_and_not_that_of_the_corpus(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "PIECE_TOKENS", 16 * 35)
    first, second = pieces(loaded, "control")
    corpus = activations.load(run(loaded, "control", tmp_path), 2, "resid_post", drop_positions=1).values
    assert torch.equal(first, pieces(loaded, "control")[0])
    for other in (second, corpus[: len(first)]):
        assert (first - other).norm(dim=-1).min() > 0.1


ALL: list[Hook] = ["resid_post", "mlp_out", "attn_out"]
HOOKS: dict[Callable[[], PreTrainedModel], list[Hook]] = {
    toy_llama: ALL,
    toy_gpt2: ALL,
    toy_neox: ALL,
    toy_gemma: ALL,
    toy_mamba: ["resid_post"],
    toy_rwkv: ["resid_post"],
}
"""Which of the hook points an architecture has, by TransformerLens' names."""


@pytest.mark.parametrize("model", HOOKS)
def test_hook_points_are_transformerlens_by_name(model: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    loaded = toy_loaded(tmp_path / "model", model())
    variant = make_variant(loaded, "trained", seed=0)
    activations.run_variant(variant, SEQUENCES[:3], HOOKS[model], [0, 1], 0, 0, CPU, tmp_path, lambda *_: None)
    _, cache = bridge(loaded).run_with_cache(SEQUENCES[:3], prepend_bos=False)
    for hook in HOOKS[model]:
        for layer in (0, 1):
            expected = cache[hook_name(layer, hook)].reshape(-1, 32)
            assert torch.allclose(activations.load(tmp_path, layer, hook, 0).values, expected, atol=1e-4)


@pytest.mark.parametrize("model", [toy_mamba, toy_rwkv])
@pytest.mark.parametrize("hook", ["mlp_out", "attn_out"])
def test_a_hook_point_that_a_model_lacks_is_answered_with_those_it_has(
    model: Callable[[], PreTrainedModel], hook: Hook
) -> None:
    made = model()
    check_hooks(made, [0, 1], ["resid_post"])
    with pytest.raises(UserError, match=rf"{type(made).__name__} has no '{hook}' in layer 1; it has: resid_post\."):
        check_hooks(made, [1], ["resid_post", hook])


def toy_opt() -> PreTrainedModel:
    shape = {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    model: PreTrainedModel = OPTForCausalLM(OPTConfig(vocab_size=400, num_hidden_layers=2, **shape))
    return model.eval()


def test_activations_that_are_no_sequences_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    opt = LoadedModel(toy_opt(), loaded.tokenizer, loaded.info)
    variant = make_variant(opt, "trained", seed=0)
    with pytest.raises(UserError, match=r"shape \[48, 32\], not batch, position and dimension"):
        activations.run_variant(variant, SEQUENCES[:3], ["mlp_out"], [0], 0, 0, CPU, tmp_path, lambda *_: None)


def test_the_pass_ends_with_the_last_hook_point_that_is_asked_for(loaded: LoadedModel, tmp_path: Path) -> None:
    variant = make_variant(loaded, "trained", seed=0)
    ran: list[int] = []
    for number, block in enumerate(blocks(variant.model)):
        block.mlp.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    hooks: list[Hook] = ["attn_out", "resid_post"]
    activations.run_variant(variant, SEQUENCES[:20], ["attn_out"], [2, 1], 1, 0, CPU, tmp_path, lambda *_: None)
    assert ran == [0, 1] * 3  # batches of eight
    ran.clear()
    (tmp_path / "000000.safetensors").unlink()
    activations.run_variant(variant, SEQUENCES[:20], hooks, [1], 1, 0, CPU, tmp_path, lambda *_: None)
    assert ran == [0, 1] * 3


def test_what_a_model_adds_in_place_afterwards_is_not_in_the_activations(tmp_path: Path) -> None:
    config = FalconConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    loaded = toy_loaded(tmp_path / "model", FalconForCausalLM(config).eval())
    variant = make_variant(loaded, "trained", seed=0)
    hooks: list[Hook] = ["mlp_out", "resid_post"]
    seen = []

    def see(_module: Any, _arguments: Any, output: torch.Tensor) -> None:
        seen.append(output.clone())

    with variant.model.transformer.h[1].mlp.register_forward_hook(see):
        activations.run_variant(variant, SEQUENCES[:3], hooks, [1], 0, 0, CPU, tmp_path, lambda *_: None)
        variant.model(SEQUENCES[:3])
    found = activations.load(tmp_path, 1, "mlp_out", 0)
    assert torch.allclose(found.values, seen[-1].reshape(-1, 32), atol=1e-6)


@pytest.mark.parametrize("model", HOOKS)
def test_the_final_norms_gain_is_its_weight(model: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    loaded = toy_loaded(tmp_path, model())
    gain = final_gain(loaded.model)
    offset = 1 if model is toy_gemma else 0  # Gemma's norms multiply by 1 + weight
    assert torch.allclose(gain, bridge(loaded).ln_final.weight + offset, atol=1e-4)


def test_files_that_a_killed_run_left_are_kept_and_the_rest_is_the_same(loaded: LoadedModel, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    run(loaded, "control", whole)
    first = sorted(whole.glob("*"))[0]
    (resumed / first.name).write_bytes(first.read_bytes())
    note(resumed / first.name)
    before = (resumed / first.name).stat().st_mtime_ns
    run(loaded, "control", resumed)
    assert (resumed / first.name).stat().st_mtime_ns == before
    assert [p.read_bytes() for p in sorted(whole.glob("*"))] == [p.read_bytes() for p in sorted(resumed.glob("*"))]


def test_outliers_of_the_norm_are_dropped_and_counted(tmp_path: Path) -> None:
    values = torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(0))
    values[2, 3] *= 1_000
    save_file({"5.mlp_out": values}, tmp_path / "000000.safetensors")
    found = activations.load(tmp_path, 5, "mlp_out", drop_positions=1)
    assert found.outliers == 1
    assert len(found.values) == len(found.token) == 27
    assert 2 * 8 + 1 + 3 not in found.token.tolist()
    assert found.dropped_share == pytest.approx((4 + 1) / 32)
    assert found.values.norm(dim=-1).max() <= found.limit
    assert found.unusable == ""


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 1e30])
def test_tokens_that_overflow_are_outliers_until_most_of_them_do(tmp_path: Path, wrong: float) -> None:
    values = torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(0))
    good = activations.OUTLIER * values.flatten(0, 1)[10:].norm(dim=-1).median()
    values.view(28, 8)[:10] = wrong
    save_file({"5.mlp_out": values}, tmp_path / "000000.safetensors")
    found = activations.load(tmp_path, 5, "mlp_out", drop_positions=1)
    assert (found.outliers, len(found.values), found.unusable) == (10, 18, "")
    assert found.values.isfinite().all()
    assert good <= found.limit < 2 * good
    values.view(28, 8)[:20] = wrong
    save_file({"5.mlp_out": values}, tmp_path / "000000.safetensors")
    found = activations.load(tmp_path, 5, "mlp_out", drop_positions=1)
    assert (found.outliers, len(found.values), found.dropped_share) == (28, 0, 1)
    assert "beyond what float32 holds" in found.unusable


def test_activations_that_are_zero_are_no_use(tmp_path: Path) -> None:
    save_file({"5.mlp_out": torch.zeros(4, 7, 8)}, tmp_path / "000000.safetensors")
    found = activations.load(tmp_path, 5, "mlp_out", drop_positions=1)
    assert len(found.values) == 0
    assert "zero, or nearly, on most tokens" in found.unusable
