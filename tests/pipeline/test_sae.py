"""Every architecture is SAELens', the fast TopK step is SAELens' TopK, and what is saved is SAELens' SAE."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

from core.errors import UserError
from pipeline.config import Architecture as Name
from pipeline.config import SaeConfig
from pipeline.latents import codes
from pipeline.saes import training
from pipeline.saes.architectures import ARCHITECTURES, train
from pipeline.saes.base import Further, Request, Trained, normalisation
from pipeline.saes.sparse_topk import SparseTopKTrainingSAE
from pipeline.saes.training import batches, folded, new_sae, new_trainer
from tests.pipeline.sae_inputs import CPU, activations, on_corpus, request, small, unexplained

TRAINED = ("topk", "batchtopk", "jumprelu", "standard", "gated", "matryoshka_batchtopk")
"""SAELens' training architectures."""


def trained_and_unfolded(config: SaeConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Trained, Any]:
    """A trained SAE, and itself just before its norms and scale were folded into its weights."""
    before = []

    def fold(sae: Any, asked: Request, steps: int) -> Trained:
        before.append(copy.deepcopy(sae))
        return folded(sae, asked, steps)

    monkeypatch.setattr(training, "folded", fold)
    return train(activations(), config, {"hook_name": "blocks.0.hook_resid_post"}, 1, CPU), before[0]


def encoded(sae: Any, x: torch.Tensor) -> torch.Tensor:
    """Activations by SAELens' training SAE, each token by itself, in units of decoder rows of norm 1."""
    latents, pre = sae.encode_with_hidden_pre(x)
    if hasattr(sae, "topk_threshold"):  # after training, a threshold stands for the choice among a batch
        arrived = 1 - (1 - sae.cfg.topk_threshold_lr) ** 80  # of 80 steps
        latents = pre.relu() * (pre > sae.topk_threshold / arrived)
    rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
    return latents.detach() * (1 if rescaled else sae.W_dec.detach().norm(dim=-1))


def decoded(sae: Any, latents: torch.Tensor) -> torch.Tensor:
    return latents @ torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1) + sae.b_dec.detach()


def test_every_architecture_of_the_study_file_is_a_row_with_a_description() -> None:
    assert tuple(ARCHITECTURES) == Name.__args__
    assert all(row.name == name and len(row.description) > 50 for name, row in ARCHITECTURES.items())


@pytest.mark.parametrize("architecture", TRAINED)
def test_the_saved_sae_does_on_raw_activations_what_training_saw_on_scaled_ones(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = activations(seed=3)
    trained, unfolded = trained_and_unfolded(small(architecture=architecture), monkeypatch)
    facts = trained.save(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == architecture.replace("matryoshka_", "").replace("batchtopk", "jumprelu")
    assert loaded.cfg.metadata.training_architecture == architecture
    expected = encoded(unfolded, x * trained.normalisation)
    latents = loaded.encode(x)
    close = torch.isclose(latents, expected, atol=1e-4)  # rounding may carry a latent over its threshold
    assert close.float().mean() > 0.9999
    assert torch.allclose(loaded.decode(expected) * trained.normalisation, decoded(unfolded, expected), atol=1e-4)
    assert torch.allclose(loaded.W_dec.norm(dim=-1) * trained.normalisation, torch.ones(64), atol=1e-4)
    assert torch.allclose(torch.tensor(facts["decoder_norms"]), unfolded.W_dec.norm(dim=-1))
    assert (facts["d_in"], facts["d_sae"], facts["training_steps"]) == (16, 64, 80)
    assert facts["k"] == (4 if "topk" in architecture else None)


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_architecture_learns_sparse_latents(architecture: str, tmp_path: Path) -> None:
    x, errors = activations(), []
    for epochs in (20, 1):
        train(x, small(architecture=architecture, epochs=epochs), {}, 1, CPU).save(tmp_path / str(epochs))
        sae = SAE.load_from_disk(tmp_path / str(epochs))
        errors.append(unexplained(x, sae.decode(sae.encode(x))))
    active = (SAE.load_from_disk(tmp_path / "20").encode(x) > 0).float().sum(-1).mean()
    assert 2 < active < 10
    assert errors[0] < min(0.3, 0.8 * errors[1])


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_the_threshold_keeps_about_k_latents_a_token_after_few_steps_too(architecture: str, tmp_path: Path) -> None:
    x = activations()
    train(x, small(architecture=architecture), {}, 1, CPU).save(tmp_path)
    active = (SAE.load_from_disk(tmp_path).encode(x) > 0).float().sum(-1).mean()
    assert 2.8 < active < 4.4  # 7.6 with SAELens' running mean from 0 as it stands after these 80 steps


@pytest.mark.parametrize("architecture", TRAINED)
def test_the_corpus_is_encoded_as_the_sae_itself_does_it(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = activations()
    train(x, small(architecture=architecture), {}, 1, CPU).save(tmp_path)
    sae = SAE.load_from_disk(tmp_path)
    expected = sae.encode(x).detach()
    monkeypatch.setattr(codes, "PRE_ACTIVATIONS", 64 * 300)  # batches of 300 tokens
    done = []
    found = codes.encode(sae, on_corpus(x), 4_000, CPU, lambda *where: done.append(where[0]))
    assert done == [300, 600, 900, 1_200, 1_500, 1_800, 2_000]
    assert torch.allclose(torch.from_numpy(found.toarray()[::2]), expected, atol=1e-5)
    assert found[list(range(1, 4_000, 2))].nnz == 0
    made = codes.reconstruct(sae, x, found[list(range(0, 4_000, 2))])
    assert torch.allclose(made, sae.decode(expected).detach(), atol=1e-3)


def test_an_sae_whose_activations_would_not_fit_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = train(activations(), small(), {}, 1, CPU).sae
    monkeypatch.setattr(codes, "NONZERO", 7_000)
    with pytest.raises(UserError, match=r"On average 4 of the SAE's latents are active on a token, .* 2000 tokens"):
        codes.encode(sae, on_corpus(activations()), 4_000, CPU, lambda *_: pytest.fail("went on"))


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
    assert unexplained(x, loaded.decode(latents)) < 0.3  # the untrained one: see test_baselines
    assert torch.allclose(trained.sae.encode(x), latents, atol=1e-5)


def test_a_threshold_that_the_last_step_left_below_zero_lets_nothing_negative_through() -> None:
    x = activations()
    asked = request(x, small(architecture="jumprelu"))
    sae = new_sae(asked, "jumprelu")
    sae.threshold.data.fill_(-0.5)
    assert (folded(sae, asked, 0).sae.encode(x) >= 0).all()


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    x = activations()
    one, same, other = (train(x, small(), {}, seed, CPU).sae.W_dec for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_auxk_and_what_the_sparse_step_cannot_do_are_left_to_saelens() -> None:
    x = activations()
    plain, unit = (new_sae(request(x, small(options=o)), "topk") for o in ({}, {"decoder_init_norm": 0.5}))
    assert isinstance(plain, SparseTopKTrainingSAE)
    assert isinstance(unit, SparseTopKTrainingSAE)
    for changes in ({"aux_loss_coefficient": 1.0}, {"options": {"apply_b_dec_to_input": False}}):
        assert type(new_sae(request(x, small(**changes)), "topk")) is TopKTrainingSAE


def test_the_scale_of_the_activations_does_not_matter() -> None:
    x = activations()
    one, tenfold = train(x, small(), {}, 1, CPU), train(10 * x, small(), {}, 1, CPU)
    assert tenfold.normalisation == pytest.approx(one.normalisation / 10, rel=1e-5)
    assert torch.allclose(one.sae.encode(x), tenfold.sae.encode(10 * x), atol=1e-2)
    assert (x * normalisation(x)).norm(dim=-1).mean() == pytest.approx(16**0.5, rel=1e-5)


def test_an_epoch_sees_every_token_once() -> None:
    rows = torch.cat(list(batches(request(torch.arange(1_000)[:, None], small(epochs=2)))))
    assert torch.equal(rows[:1_000].sort(0).values, torch.arange(1_000)[:, None])
    assert not torch.equal(rows[:100], rows[1_000:1_100])


def in_pieces(x: torch.Tensor, size: int, config: SaeConfig) -> Request:
    """The same training tokens, of which only the first piece is in memory."""
    first, *others = x.split(size)
    return replace(request(first, config), further=Further(len(x) - len(first), lambda: iter(others)))


def test_pieces_are_seen_in_turn_and_what_a_piece_has_left_goes_into_the_next() -> None:
    made = list(batches(in_pieces(torch.arange(1_000)[:, None], 250, small(epochs=2))))
    assert [len(batch) for batch in made] == [100] * 20
    assert torch.equal(torch.cat(made[:10]).sort(0).values, torch.arange(1_000)[:, None])
    assert torch.equal(torch.cat(made[10:]).sort(0).values, torch.arange(1_000)[:, None])
    assert max(map(int, torch.cat(made[:2]))) < 250  # the first piece, less 50 tokens
    third = torch.cat(made[2:5])
    assert int((third < 250).sum()) == 50
    assert int(third.max()) < 500
    assert not torch.equal(made[0], made[10])


def test_what_no_batch_is_full_of_is_dropped_at_the_end_of_an_epoch() -> None:
    made = list(batches(in_pieces(torch.arange(1_030)[:, None], 250, small(epochs=2))))
    assert [len(batch) for batch in made] == [100] * 20
    assert all(len(torch.cat(epoch).unique()) == 1_000 for epoch in (made[:10], made[10:]))


def test_an_sae_learns_from_the_pieces_that_come_later() -> None:
    """They have directions that the first piece lacks."""
    first, later = activations(seed=0), activations(tokens=6_000, seed=1)
    config = small(epochs=1, batch_tokens=50)
    alone = train(first, config, {}, 1, CPU).sae
    steps: list[tuple[int, int]] = []
    further = Further(len(later), lambda: iter(later.split(500)))
    both = train(first, config, {}, 1, CPU, lambda *step: steps.append(step), further)
    assert (both.steps, both.tokens) == (160, 8_000)
    assert steps[-1] == (8_000, 8_000)
    assert both.normalisation == pytest.approx(normalisation(first))
    assert unexplained(later, both.sae(later)) < 0.7 * unexplained(later, alone(later))


def test_steps_are_those_that_were_taken_where_outliers_are_missing() -> None:
    x = activations()
    config = small(epochs=1)
    fewer = Further(1_000, lambda: iter([x[:130]]))  # 870 were outliers
    made = train(x, config, {}, 1, CPU, further=fewer)
    assert (made.steps, made.tokens) == (21, 2_100)


def test_latents_and_learning_rate_follow_the_hook_point() -> None:
    config = small(d_sae=None, expansion=4, learning_rate="auto")
    sae = new_sae(request(activations(), config), "topk")
    assert sae.W_dec.shape == (64, 16)
    peak = new_trainer(sae, config, 100, CPU).optimizer.param_groups[0]["initial_lr"]
    assert peak == pytest.approx(2e-4 * 16)  # 64 latents: 2e-4 / sqrt(2^6 / 2^14)


def test_matryoshka_levels_double_by_default_and_can_be_chosen() -> None:
    default = new_sae(request(activations(), small(architecture="matryoshka_batchtopk")), "matryoshka_batchtopk")
    assert default.cfg.matryoshka_widths == [2, 6, 14, 30, 64]
    own = small(architecture="matryoshka_batchtopk", options={"matryoshka_widths": [8, 64]})
    assert new_sae(request(activations(), own), "matryoshka_batchtopk").cfg.matryoshka_widths == [8, 64]


def test_a_larger_penalty_makes_fewer_latents_active() -> None:
    x = activations()
    few, many = (
        train(x, small(architecture="standard", options={"l1_coefficient": value}), {}, 1, CPU).sae
        for value in (2.0, 0.02)
    )
    assert (few.encode(x) > 0).sum() < 0.8 * (many.encode(x) > 0).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "standard", "options": {"l1": 2}}, r"Unknown option 'l1' .* l1_coefficient, lp_norm"),
        ({"architecture": "topk", "options": {"k": 2}}, r"Unknown option 'k' in sae.options of topk"),
        ({"architecture": "gated", "options": {"l1_coefficient": "2"}}, r"l1_coefficient = '2' is invalid: "),
        ({"architecture": "matryoshka_batchtopk", "options": {"matryoshka_widths": [9, 3, 64]}}, "strictly increasing"),
        ({"architecture": "jumprelu", "aux_loss_coefficient": 1.0}, r"jumprelu has no AuxK"),
        ({"architecture": "jumprelu", "options": {"jumprelu_bandwidth": 0.0}}, r"bandwidth is 0\.0; allowed: above 0"),
        ({"architecture": "jumprelu", "options": {"l0_coefficient": -1.0}}, r"l0_coefficient is -1\.0; allowed: 0 or"),
        ({"architecture": "standard", "options": {"l1_coefficient": 1e300}}, r"is 1e\+300; allowed: .* at most 1e\+09"),
        (
            {"architecture": "standard", "options": {"l1_warm_up_steps": 10**400}},
            r"is 1000+…; allowed: .* at most 1e\+09",
        ),
        (
            {"architecture": "batchtopk", "options": {"topk_threshold_lr": 5.0}},
            r"is 5\.0; allowed: above 0, .* at most 1\.",
        ),
        ({"architecture": "batchtopk", "k": 32, "d_sae": None, "expansion": 2}, r"k is 32, but .* only 32 latents"),
        ({"architecture": "pca", "options": {"whiten": True}}, r"options has whiten, .* pca has no options"),
    ],
)
def test_settings_that_do_not_do_are_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(activations(), small(**changes), {}, 0, CPU)


def test_too_few_tokens_for_a_batch_is_said() -> None:
    with pytest.raises(UserError, match=r"batch_tokens is 100, but there are only 60 training tokens"):
        train(activations(60), small(), {}, 0, CPU)
