"""SAEs that somebody trained: read from SAELens' and sparsify's formats, used as they are."""

import io
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders
from sae_lens.registry import get_sae_class
from safetensors.torch import save_file

from core.errors import UserError
from pipeline.config import load_study
from pipeline.latents import codes
from pipeline.saes import pretrained
from pipeline.saes.architectures import train
from pipeline.saes.base import Trained, normalisation
from pipeline.study import run_study
from tests.pipeline.sae_inputs import CPU, activations, on_corpus, small
from tests.pipeline.studies_for_tests import toy_study

RANDOM = torch.Generator().manual_seed(0)


def write_saelens(folder: Path, architecture: str = "standard", **settings: Any) -> Any:
    """A SAELens SAE with random weights and decoder rows of all lengths, saved by SAELens."""
    kind, config = get_sae_class(architecture)
    if architecture == "topk":
        settings |= {"k": 3}
    sae = kind(config(**({"d_in": 16, "d_sae": 40} | settings)))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=RANDOM) / 3)
    sae.save_model(folder)
    return sae


def write_sparsify(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, torch.Tensor]:
    """An SAE as sparsify's `save_to_disk` writes it: 16 dimensions, 32 latents, k = 3."""
    folder.mkdir(parents=True)
    config = {
        "activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": 3,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": 16,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config | settings), encoding="utf-8")
    decoder = torch.nn.functional.normalize(torch.randn(32, 16, generator=RANDOM), dim=-1)
    weights = {
        "encoder.weight": torch.randn(32, 16, generator=RANDOM), "encoder.bias": torch.randn(32, generator=RANDOM),
        "W_dec": decoder, "b_dec": torch.randn(16, generator=RANDOM),
    }  # fmt: skip
    weights = {name: value.to(dtype) for name, value in weights.items()}
    save_file(weights, folder / "sae.safetensors")
    return weights


def load(source: str, x: torch.Tensor | None = None) -> Trained:
    metadata = {"hook_name": "blocks.7.hook_mlp_out", "lineup_study": "a study"}
    config = small(architecture="pretrained", source=source)
    return train(activations() if x is None else x, config, metadata, 1, CPU)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
def test_an_sae_of_saelens_is_used_as_it_is(architecture: str, tmp_path: Path) -> None:
    x = activations()
    own = write_saelens(tmp_path / "layer 7", architecture)
    made = load(f"folder:{tmp_path}/layer {{layer}}")
    facts = made.save(tmp_path / "saved")
    loaded = SAE.load_from_disk(tmp_path / "saved")
    assert torch.equal(loaded.encode(x), own.encode(x))
    assert torch.equal(loaded(x), own(x))
    assert made.normalisation == normalisation(x)
    assert facts["decoder_norms"] == pytest.approx(own.W_dec.norm(dim=-1).tolist())
    assert (facts["d_in"], facts["d_sae"], facts["k"]) == (16, 40, 3 if architecture == "topk" else None)
    assert (facts["training_steps"], facts["training_tokens"]) == (0, 0)
    assert loaded.cfg.metadata.lineup_source == f"folder:{tmp_path}/layer 7"
    assert loaded.cfg.metadata.lineup_hook_name == "blocks.7.hook_mlp_out"
    assert loaded.cfg.metadata.lineup_study == "a study"


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_its_own_normalisation_of_each_token_is_applied_and_undone(kind: str, tmp_path: Path) -> None:
    x = activations()
    own = write_saelens(tmp_path, normalize_activations=kind)
    sae = load(f"folder:{tmp_path}").sae
    found = codes.encode(sae, on_corpus(x), 4_000, CPU, lambda *_: None)
    assert torch.allclose(torch.from_numpy(found.toarray()[::2]), own.encode(x).detach(), atol=1e-4)
    made = codes.reconstruct(sae, x[:300], found[list(range(0, 600, 2))])
    assert torch.allclose(made, own(x[:300]).detach(), atol=1e-3)
    assert not torch.allclose(made, own.decode(own.encode(x[300:600]))[:300], atol=1e-1)


def test_an_expected_average_norm_is_that_of_the_activations_at_hand(tmp_path: Path) -> None:
    x = activations()
    own = write_saelens(tmp_path, normalize_activations="expected_average_only_in")
    sae = load(f"folder:{tmp_path}").sae
    scale = normalisation(x)
    assert torch.allclose(sae.encode(x), own.encode(x * scale), atol=1e-4)
    assert torch.allclose(sae(x), own(x * scale) / scale, atol=1e-3)


def test_a_topk_sae_that_scales_by_decoder_norms_stays_the_same(tmp_path: Path) -> None:
    x = activations()
    own = write_saelens(tmp_path, "topk", rescale_acts_by_decoder_norm=True)
    sae = load(f"folder:{tmp_path}").sae
    latents = own.encode(x).detach()
    assert torch.allclose(sae.encode(x), latents, atol=1e-4)
    assert torch.allclose(latents @ sae.W_dec + sae.b_dec, own.decode(latents), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_sae_of_sparsify_computes_what_sparsify_does(dtype: torch.dtype, tmp_path: Path) -> None:
    x = activations()
    weights = {name: value.float() for name, value in write_sparsify(tmp_path / "layers.7.mlp", dtype).items()}
    made = load(f"sparsify:folder:{tmp_path}/layers.{{layer}}.mlp")
    facts = made.save(tmp_path / "saved")
    sae = SAE.load_from_disk(tmp_path / "saved")
    pre = torch.relu((x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"])
    kept = torch.where(pre >= pre.topk(3, dim=-1).values[:, -1:], pre, torch.zeros(()))
    assert torch.allclose(sae.encode(x), kept, atol=1e-4)
    assert torch.allclose(sae(x), kept @ weights["W_dec"] + weights["b_dec"], atol=1e-3)
    assert (facts["d_sae"], facts["k"]) == (32, 3)


def test_the_number_of_latents_of_sparsify_may_be_given(tmp_path: Path) -> None:
    write_sparsify(tmp_path / "given", num_latents=32, expansion_factor=99)
    assert load(f"sparsify:folder:{tmp_path}/given").sae.cfg.d_sae == 32


def test_a_hub_is_asked_for_the_layers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sparsify(tmp_path / "someone/saes/layers.7.mlp")
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append(file)
        return str(tmp_path / repository / file)

    monkeypatch.setattr(pretrained, "hf_hub_download", download)
    load("sparsify:hub:someone/saes/layers.{layer}.mlp")
    assert asked == ["layers.7.mlp/cfg.json", "layers.7.mlp/sae.safetensors"]


def test_saelens_own_format_comes_from_a_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write_saelens(tmp_path / "someone/saes/deep/blocks.7")

    def download(repo_id: str, filename: str, **_options: Any) -> str:
        if filename.endswith("sparsity.safetensors"):
            raise EntryNotFoundError(filename)
        return str(tmp_path / repo_id / filename)

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", download)
    assert torch.equal(load("hub:someone/saes/deep/blocks.{layer}").sae.W_dec, own.W_dec)


def test_a_release_of_saelens_list_is_asked_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(release: str, name: str, **_options: Any) -> None:
        raise ValueError(f"asked for {name} of {release}")

    monkeypatch.setattr(SAE, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"asked for blocks\.7\.hook_resid_pre of gpt2-small-res-jb"):
        load("hub:gpt2-small-res-jb/blocks.{layer}.hook_resid_pre")


def test_an_unreachable_hub_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_names: str) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(pretrained, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"Cannot read the SAE 'sparsify:hub:a/b/c': no connection\. Check the name"):
        load("sparsify:hub:a/b/c")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transcode": True}, "not an SAE but a transcoder"),
        ({"skip_connection": True}, "not an SAE but a transcoder"),
        ({"activation": "groupmax"}, "has the activation 'groupmax'"),
        ({"signed": True}, "has the activation 'signed'"),
        ({"expansion_factor": 3}, r"sparsify's SAE has .*\(48, 16\)"),
    ],
)
def test_what_sparsify_wrote_and_is_no_topk_sae_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_sparsify(tmp_path / "sae", **settings)
    with pytest.raises(UserError, match=message):
        load(f"sparsify:folder:{tmp_path}/sae")


def test_a_skip_connection_is_seen_in_the_weights_too(tmp_path: Path) -> None:
    weights = write_sparsify(tmp_path / "sae")
    save_file(weights | {"W_skip": torch.zeros(16, 16)}, tmp_path / "sae/sae.safetensors")
    with pytest.raises(UserError, match="not an SAE but a transcoder"):
        load(f"sparsify:folder:{tmp_path}/sae")


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("standard", {"d_in": 12}, r"takes 12 dimensions, but the hook point 'blocks\.7\.hook_mlp_out' has 16"),
        ("standard", {"reshape_activations": "hook_z"}, "reshape_activations hook_z"),
        ("standard", {"normalize_activations": "covariance_whitening"}, "normalize_activations covariance_whitening"),
        ("abstopk", {"k": 3}, r"'abstopk', which is not an SAE that can be shown here\. Known: standard, topk"),
        ("transcoder", {"d_out": 16, "apply_b_dec_to_input": False}, r"'transcoder', which is not an SAE"),
    ],
)
def test_what_is_no_sae_of_this_hook_point_is_refused(
    architecture: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_saelens(tmp_path, architecture, **settings)
    with pytest.raises(UserError, match=message):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file:x", r"Unknown sae\.source 'file:x'\. Known: folder:PATH, hub:RELEASE/ID, sparsify:folder:PATH"),
        ("folder:", r"Unknown sae\.source 'folder:'"),
        ("folder:/nowhere", r"The SAE folder '/nowhere' does not exist"),
        ("sparsify:folder:/nowhere", r"Cannot read the SAE 'sparsify:folder:/nowhere': .*No such file"),
        ("hub:gpt2-small-res-jb/nonsense", r"Cannot read the SAE .* ID nonsense not found in release"),
        ("hub:nonsense", r"Cannot read the SAE 'hub:nonsense'"),
    ],
)
def test_a_source_that_cannot_be_read_is_said(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(source)


def test_a_file_that_is_no_configuration_is_said(tmp_path: Path) -> None:
    write_saelens(tmp_path)
    (tmp_path / "cfg.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"Cannot read the SAE 'folder:"):
        load(f"folder:{tmp_path}")


# In a study.


def test_hashes_are_those_of_the_layers_own_files_and_a_hub_has_none(tmp_path: Path) -> None:
    for layer in (0, 1):
        write_sparsify(tmp_path / f"layer{layer}")
    source = f"sparsify:folder:{tmp_path}/layer{{layer}}"
    first, second = (pretrained.contents(source, layer) for layer in (0, 1))
    assert len(first) == len(second) == 2
    assert first[1] != second[1]
    assert pretrained.contents(f"folder:{tmp_path}/layer0", 7) == first
    assert pretrained.contents("sparsify:hub:owner/name/folder:0", 0) == []
    assert pretrained.contents("folder:/nowhere", 0) == []


def test_an_sae_that_is_put_in_anothers_place_is_another_one_for_the_study(tmp_path: Path) -> None:
    place = tmp_path / "sae-0"
    sae = {"architecture": "pretrained", "source": f"folder:{tmp_path}/sae-{{layer}}"}
    study = load_study(toy_study(tmp_path, layers=[0], variants=["trained"], sae=sae))

    def weights() -> list[tuple[str, int]]:
        database = run_study(study, tmp_path / "runs", io.StringIO())
        with duckdb.connect(str(database), read_only=True) as connection:
            return connection.execute("SELECT sha256, d_sae FROM saes").fetchall()

    write_saelens(place, d_in=32, d_sae=40)
    first = weights()
    assert weights() == first
    write_saelens(place, d_in=32, d_sae=40)
    (other,) = weights()
    assert other != first[0]
    assert other[1] == 40
