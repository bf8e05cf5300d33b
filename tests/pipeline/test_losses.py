"""Losses with an SAE in place: against the model's own, against TransformerLens' bridge, and under noise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config import Hook, hook_name
from pipeline.measures import losses
from pipeline.measures.losses import Placed, loss_metrics
from pipeline.measures.metrics import NOT_FINITE, Losses, ce_loss_recovered, kl_recovered
from pipeline.models.load import LoadedModel
from pipeline.variants.make import make_variant
from tests.pipeline.test_activations import CPU, HOOKS, SEQUENCES
from tests.pipeline.toy import bridge, toy_loaded


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return toy_loaded(tmp_path_factory.mktemp("model"))


class Scaled(torch.nn.Module):
    """Stands for an SAE: perfect at 1, all zeros at 0, and a bad one between."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def measure(
    loaded: LoadedModel, factor: float, limit: float = 1e9, hook: Hook = "resid_post", name: str = "trained"
) -> Losses:
    variant = make_variant(loaded, name, seed=0)
    sae: Any = Scaled(factor)
    return losses.measure(variant, SEQUENCES[:6], [Placed((0, hook), sae, limit)], 1, 0, CPU, lambda *_: None)[0]


@pytest.mark.parametrize("name", ["trained", "control"])
def test_a_perfect_sae_costs_nothing_and_a_zero_one_all(loaded: LoadedModel, name: str) -> None:
    """Under noise too: all runs see the same."""
    perfect, nothing = measure(loaded, 1.0, name=name), measure(loaded, 0.0, name=name)
    assert torch.allclose(perfect.sae, perfect.clean, atol=1e-4)
    assert perfect.kl_sae.abs().max() < 1e-5
    assert torch.equal(nothing.sae, nothing.zero)
    assert torch.equal(nothing.kl_sae, nothing.kl_zero)
    assert not torch.allclose(nothing.zero, nothing.clean, atol=1e-3)
    assert nothing.kl_zero.min() > 0.01


def test_clean_losses_are_the_models_own(loaded: LoadedModel) -> None:
    logits = loaded.model(SEQUENCES[:6]).logits
    own = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].mT, SEQUENCES[:6, 2:].long(), reduction="none"
    )  # [sequence, position]
    assert torch.allclose(measure(loaded, 1.0).clean, own, atol=1e-4)


def test_spared_tokens_keep_their_activations(loaded: LoadedModel) -> None:
    spared = measure(loaded, 0.0, limit=0.0)  # every token is an outlier
    assert torch.allclose(spared.zero, spared.clean, atol=1e-4)
    assert spared.kl_zero.abs().max() < 1e-5
    first = losses.measure(
        make_variant(loaded, "trained", seed=0),
        SEQUENCES[:6],
        [Placed((0, "resid_post"), Scaled(0.0), 1e9)],
        15,
        0,
        CPU,
        lambda *_: None,
    )
    assert first[0].zero.numel() == 0  # the one position that is not spared has no next token


@pytest.mark.parametrize(("model", "hook"), [(model, hook) for model, hooks in HOOKS.items() for hook in hooks])
def test_losses_are_those_of_transformerlens_bridge(
    model: Callable[[], PreTrainedModel], hook: Hook, tmp_path: Any
) -> None:
    loaded = toy_loaded(tmp_path, model())
    found = measure(loaded, 0.5, hook=hook)
    wrapped, tokens = bridge(loaded), SEQUENCES[:6].long()

    def log_probabilities(factor: float) -> Tensor:
        def change(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 (TransformerLens passes it by this name)
            return torch.cat([value[:, :1], factor * value[:, 1:]], dim=1)

        logits = wrapped.run_with_hooks(tokens, fwd_hooks=[(hook_name(0, hook), change)], prepend_bos=False)
        return logits[:, 1:-1].log_softmax(-1)

    clean, half, none = (log_probabilities(factor) for factor in (1.0, 0.5, 0.0))
    for changed, cross_entropy, divergence in ((half, found.sae, found.kl_sae), (none, found.zero, found.kl_zero)):
        own = -changed.gather(2, tokens[:, 2:, None])[..., 0]
        assert torch.allclose(cross_entropy, own, atol=1e-3)
        assert torch.allclose(divergence, (clean.exp() * (clean - changed)).sum(-1), atol=1e-3)
    assert found.kl_sae.mean() > 1e-3


def test_many_small_batches_give_what_one_gives(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(loaded, 0.5)
    monkeypatch.setattr(losses, "LOGITS", 1)
    monkeypatch.setattr(losses, "ROWS", 3)
    for one, other in zip(whole, measure(loaded, 0.5), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_noise_is_fresh_in_every_batch(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOGITS", 1)
    variant = make_variant(loaded, "control", seed=0)
    twice = SEQUENCES[:1].repeat(2, 1)
    placed = [Placed((0, "resid_post"), Scaled(0.5), 1e9)]
    first, second = losses.measure(variant, twice, placed, 1, 0, CPU, lambda *_: None)[0].clean.chunk(2)
    assert not torch.allclose(first, second, atol=1e-3)


def test_several_saes_are_measured_one_by_one(loaded: LoadedModel) -> None:
    """Two at one of the hook points."""
    places: list[tuple[int, Hook, float]] = [(0, "mlp_out", 0.5), (0, "resid_post", 0.5), (0, "resid_post", 0.9)]
    variant = make_variant(loaded, "trained", seed=0)
    steps: list[tuple[int, int]] = []
    placed = [Placed((layer, hook), Scaled(factor), 1e9) for layer, hook, factor in [*places, (2, "attn_out", 0.5)]]
    together = losses.measure(variant, SEQUENCES[:6], placed, 1, 0, CPU, lambda *step: steps.append(step))
    assert len(together) == 4
    assert steps == [(1 + 3 + 4, 1 + 3 + 4)]
    for found, (_, hook, factor) in zip(together[:3], places, strict=True):
        for one, other in zip(found, measure(loaded, factor, hook=hook), strict=True):
            assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(together[1].sae, together[2].sae, atol=1e-3)
    assert not any(module._forward_hooks for module in variant.model.modules())


# From losses to numbers.


def made(kl_sae: list[float], kl_zero: list[float]) -> Losses:
    """Four sequences of one position."""
    ones = torch.tensor([[2.0], [2.1], [1.9], [2.0]])
    divergences = (torch.tensor(each)[:, None] for each in (kl_sae, kl_zero))
    return Losses(ones, ones + 0.5, ones + torch.tensor([[2.0], [2.1], [1.9], [2.0]]), *divergences)


def test_recovered_shares_by_hand() -> None:
    found = made([0.5, 0.5, 1.0, 0.0], [2.0, 1.9, 2.1, 2.0])
    values, missing = loss_metrics(found, 50, sees_noise=False)
    assert missing == {}
    assert values["kl_sae"] == pytest.approx(0.5)
    assert values["kl_zero"] == pytest.approx(2.0)
    assert values["kl_recovered"] == pytest.approx((2.0 - 0.5) / 2.0)
    assert values["ce_loss_recovered"] == pytest.approx((4.0 - 2.5) / (4.0 - 2.0))
    assert (values["ce_clean"], values["ce_sae"], values["ce_zero"]) == pytest.approx((2.0, 2.5, 4.0))


@pytest.mark.parametrize("kl_zero", [[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [1e-7, 1e-7, 1e-7, 1.1e-7]])
def test_nothing_is_recovered_where_zeroing_moves_nothing(kl_zero: list[float]) -> None:
    value, reason = kl_recovered(made([0.0] * 4, kl_zero))
    assert value is None
    assert "nothing to recover" in reason


def test_losses_that_overflow_are_no_shares() -> None:
    found = made([0.5, 0.5, torch.inf, 0.0], [2.0, 1.9, 2.1, 2.0])
    values, missing = loss_metrics(found, 50, sees_noise=False)
    assert missing == {"ce_loss_recovered": NOT_FINITE, "kl_recovered": NOT_FINITE}
    assert values["kl_sae"] == torch.inf


def test_a_variant_that_sees_noise_has_kl_but_no_loss_on_the_text() -> None:
    found = made([0.5, 0.5, 1.0, 0.0], [2.0, 1.9, 2.1, 2.0])
    values, missing = loss_metrics(found, 50, sees_noise=True)
    assert "kl_recovered" in values
    assert "ce_loss_recovered" not in values
    assert "noise in place of the text" in missing["ce_loss_recovered"]
    assert ce_loss_recovered(found, 50)[0] is not None
