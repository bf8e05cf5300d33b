"""Running a variant: which tokens are kept, resumed files, and the losses with an SAE in place."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from pipeline import activations, losses
from pipeline.hardware import Compute
from pipeline.logits import final_gain
from pipeline.models import LoadedModel, bridge
from pipeline.variants import make_variant
from tests.pipeline.toy import toy_gpt2, toy_llama, toy_loaded, toy_neox

CPU = Compute("cpu", bfloat16=False)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_loaded(tmp_path_factory.mktemp("model"))


SEQUENCES = torch.randint(5, 300, (70, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


def run(loaded: LoadedModel, name: str, folder: Path) -> Path:
    variant = make_variant(loaded, name, seed=0)
    activations.run_variant(variant, SEQUENCES, [0, 2], 1, 0, CPU, folder, lambda *_: None)
    return folder


def test_activations_are_the_models_own_hidden_states_without_the_first_position(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    folder = run(loaded, "trained", tmp_path)
    expected = loaded.model(SEQUENCES, output_hidden_states=True).hidden_states[1][:, 1:]
    found = activations.load(folder, 0, drop_positions=1)
    assert torch.allclose(found.values, expected.reshape(-1, 32), atol=1e-4)
    assert found.token[:16].tolist() == [*range(1, 16), 17]
    assert found.dropped_share == pytest.approx(1 / 16)


@pytest.mark.parametrize("model", [toy_llama, toy_gpt2, toy_neox])
def test_blocks_give_transformerlens_residual_stream(model: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    loaded = toy_loaded(tmp_path / "model", model())
    variant = make_variant(loaded, "trained", seed=0)
    activations.run_variant(variant, SEQUENCES[:3], [0, 1], 0, 0, CPU, tmp_path, lambda *_: None)
    _, cache = bridge(loaded).run_with_cache(SEQUENCES[:3])
    for layer in (0, 1):
        expected = cache[f"blocks.{layer}.hook_resid_post"].reshape(-1, 32)
        assert torch.allclose(activations.load(tmp_path, layer, 0).values, expected, atol=1e-4)


@pytest.mark.parametrize("model", [toy_llama, toy_gpt2, toy_neox])
def test_the_final_norms_gain_is_its_weight(model: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    loaded = toy_loaded(tmp_path, model())
    gain = final_gain(loaded.model)
    assert torch.allclose(gain, bridge(loaded).ln_final.weight, atol=1e-4)


def test_files_that_a_killed_run_left_are_kept_and_the_rest_is_the_same(loaded: LoadedModel, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    run(loaded, "control", whole)
    first = sorted(whole.glob("*"))[0]
    (resumed / first.name).write_bytes(first.read_bytes())
    before = (resumed / first.name).stat().st_mtime_ns
    run(loaded, "control", resumed)
    assert (resumed / first.name).stat().st_mtime_ns == before
    assert [p.read_bytes() for p in sorted(whole.glob("*"))] == [p.read_bytes() for p in sorted(resumed.glob("*"))]


def test_outliers_of_the_norm_are_dropped_and_counted(tmp_path: Path) -> None:
    values = torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(0))
    values[2, 3] *= 1_000
    save_file({"5": values}, tmp_path / "000000.safetensors")
    found = activations.load(tmp_path, 5, drop_positions=1)
    assert found.outliers == 1
    assert len(found.values) == len(found.token) == 27
    assert 2 * 8 + 1 + 3 not in found.token.tolist()
    assert found.dropped_share == pytest.approx((4 + 1) / 32)
    assert found.values.norm(dim=-1).max() <= found.limit


class Replaced(torch.nn.Module):
    """Stands for an SAE: perfect, or one that returns zeros."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def measure(loaded: LoadedModel, factor: float, limit: float) -> losses.Losses:
    variant = make_variant(loaded, "trained", seed=0)
    wrapped = bridge(LoadedModel(variant.model, loaded.tokenizer, loaded.info))
    sae = (Replaced(factor), limit)
    return losses.measure(wrapped, nullcontext, SEQUENCES[:6], {0: sae}, 1, CPU, lambda *_: None)[0]


def test_a_perfect_sae_costs_nothing_and_a_zero_one_all(loaded: LoadedModel) -> None:
    perfect, nothing = measure(loaded, 1.0, 1e9), measure(loaded, 0.0, 1e9)
    assert torch.allclose(perfect.sae, perfect.clean, atol=1e-4)
    assert torch.equal(nothing.sae, nothing.zero)
    assert not torch.allclose(nothing.zero, nothing.clean, atol=1e-3)


def test_clean_losses_are_the_models_own(loaded: LoadedModel) -> None:
    logits = loaded.model(SEQUENCES[:6]).logits
    own = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].flatten(0, 1), SEQUENCES[:6, 2:].flatten().long(), reduction="none"
    )
    assert torch.allclose(measure(loaded, 1.0, 1e9).clean, own, atol=1e-4)


def test_spared_tokens_keep_their_activations(loaded: LoadedModel) -> None:
    spared = measure(loaded, 0.0, limit=0.0)  # every token is an outlier
    assert torch.allclose(spared.zero, spared.clean, atol=1e-4)
