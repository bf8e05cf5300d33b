"""The fast TopK step is SAELens' TopK, and what is saved is SAELens' SAE."""

from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

from pipeline.config import SaeConfig
from pipeline.errors import LineupError
from pipeline.hardware import Compute
from pipeline.sae import SparseTopKTrainingSAE, batches, normalisation, train

CPU = Compute("cpu", bfloat16=False)


def activations(tokens: int = 2_000, d_in: int = 16, seed: int = 0) -> torch.Tensor:
    """Sparse mixtures of 24 directions on top of an offset."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(24, d_in, generator=generator)
    weights = torch.rand(tokens, 24, generator=generator) * (torch.rand(tokens, 24, generator=generator) < 0.1)
    return weights @ directions * 7 + 2 + 0.05 * torch.randn(tokens, d_in, generator=generator)


def small(**changes: object) -> SaeConfig:
    values = {"d_sae": 64, "k": 4, "batch_tokens": 100, "learning_rate": 3e-3, "warm_up_steps": 5, "epochs": 4}
    return SaeConfig.model_validate(values | changes)


def test_loss_and_gradients_equal_those_of_saelens() -> None:
    torch.manual_seed(0)
    config = TopKTrainingSAEConfig(d_in=16, d_sae=64, k=4, aux_loss_coefficient=0.0, metadata=SAEMetadata())
    ours, theirs = SparseTopKTrainingSAE(config), TopKTrainingSAE(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.load_state_dict(ours.state_dict())
    step = TrainStepInput(
        sae_in=activations(50), coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    losses = []
    for sae in (ours, theirs):
        output = sae.training_forward_pass(step)
        output.loss.backward()
        losses.append(output)
    assert torch.allclose(losses[0].loss, losses[1].loss, rtol=1e-5)
    assert torch.allclose(losses[0].feature_acts.to_dense(), losses[1].feature_acts, atol=1e-5)
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4), name


def test_training_learns_and_the_saved_sae_gives_the_same_latents(tmp_path: Path) -> None:
    x = activations()
    trained = train(x, small(), {"hook_name": "blocks.0.hook_resid_post"}, seed=1, compute=CPU)
    trained.save(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == "topk"
    latents = loaded.encode(x)
    assert int((latents > 0).sum(-1).max()) <= 4
    error = (loaded.decode(latents) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.3  # the untrained one: see the next test
    assert torch.allclose(trained.sae.encode(x), latents, atol=1e-5)
    assert torch.allclose(loaded.W_dec.norm(dim=-1) * trained.normalisation, torch.ones(64), atol=1e-4)


def test_an_untrained_sae_reconstructs_worse() -> None:
    x = activations()
    untrained = train(x, small(epochs=1, learning_rate=1e-9), {}, seed=1, compute=CPU).sae
    error = (untrained.decode(untrained.encode(x)) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert error > 0.3


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    x = activations()
    one, same, other = (train(x, small(), {}, seed, CPU).sae.W_dec for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_auxk_is_left_to_saelens_and_changes_what_is_learnt() -> None:
    x = activations()
    plain = train(x, small(), {}, 1, CPU).sae
    with_auxk = train(x, small(aux_loss_coefficient=1.0), {}, 1, CPU).sae
    assert isinstance(plain, SparseTopKTrainingSAE)
    assert type(with_auxk) is TopKTrainingSAE


def test_the_scale_of_the_activations_does_not_matter() -> None:
    x = activations()
    one, tenfold = train(x, small(), {}, 1, CPU), train(10 * x, small(), {}, 1, CPU)
    assert tenfold.normalisation == pytest.approx(one.normalisation / 10, rel=1e-5)
    assert torch.allclose(one.sae.encode(x), tenfold.sae.encode(10 * x), atol=1e-2)
    assert (x * normalisation(x)).norm(dim=-1).mean() == pytest.approx(16**0.5, rel=1e-5)


def test_an_epoch_sees_every_token_once() -> None:
    rows = torch.cat(list(batches(1_000, small(epochs=2), seed=0)))
    assert torch.equal(rows[:1_000].sort().values, torch.arange(1_000))
    assert not torch.equal(rows[:100], rows[1_000:1_100])


def test_too_few_tokens_for_a_batch_is_said() -> None:
    with pytest.raises(LineupError, match=r"batch_tokens is 100, but there are only 60 training tokens"):
        train(activations(60), small(), {}, 0, CPU)
