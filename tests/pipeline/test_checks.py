"""What a model cannot have is said before the work, by `run` and by `plan` in the same words."""

from pathlib import Path

import pytest

from lineup import main
from tests.pipeline.studies_for_tests import toy_study
from tests.pipeline.toy import save_toy_model, toy_gpt2, toy_mamba


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study file; beside it the model of the toy study, and two others."""
    folder = tmp_path_factory.mktemp("toy")
    save_toy_model(folder / "gpt2", toy_gpt2())
    save_toy_model(folder / "mamba", toy_mamba())
    return toy_study(folder)


@pytest.mark.parametrize(
    ("model", "changes", "sentence"),
    [
        ("gpt2", ["corpus.context_length=512", "layers=all"], "GPT2LMHeadModel was made for sequences of up to 256"),
        ("model", ["corpus.context_length=512"], "LlamaForCausalLM was made for sequences of up to 256 tokens"),
        ("model", ["layers=every 7"], "layers: model has 3 layers, and none of them is asked for"),
        ("model", ["collect.logit_tokens=401"], "collect.logit_tokens is 401, but model has only 400 tokens"),
        ("model", ["variants=[trained, step0]"], "has no revision 'step0': only hub:NAME has revisions"),
        ("model", ["variants=[trained, 'layers_from:3']"], "layers_from:3: the model has no layer 3; allowed: 0 to 2"),
        ("model", ["variants=[trained, 'scale:-1']"], "Unknown variant 'scale:-1': write scale:<s> with a number"),
        ("model", ["variants=[trained, 'init:lecun']"], "Unknown variant 'init:lecun': write init:<scheme> with one"),
        ("mamba", ["variants=[trained, mlp_only]", "layers=all"], "leave out the variants attention_only and mlp_only"),
        ("mamba", ["hooks=[mlp_out]", "layers=all"], "MambaForCausalLM has no 'mlp_out' in layer 0"),
        ("model", ["sae.d_sae=null", "sae.k=256"], "sae.k is 256, but this SAE has only 256 latents"),
        ("model", ["sae.architecture=pca", "sae.k=33"], "sae.k is 33, but pca has only 32 directions here"),
        ("model", ["sae.architecture=neurons", "sae.options={a: 1}"], "the architecture neurons has no options"),
        ("model", ["sae.architecture=jumprelu", "sae.options={jumprelu_bandwidth: 0.0}"], "jumprelu_bandwidth is 0.0;"),
        ("model", ["sae.architecture=frozen_decoder", "sae.options={b: 1}"], "Unknown option 'b' in sae.options"),
        ("model", ["sae.architecture=pretrained", "sae.source=zip:x"], "Unknown sae.source 'zip:x'. Known: folder:"),
        ("model", ["corpus.source=zip:x"], "Unknown corpus.source 'zip:x'. Known: wheel:gensim"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_have_is_said_before_the_work(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, changes: list[str], sentence: str
) -> None:
    sets = [part for change in [f"model.source=folder:{study.parent / model}", *changes] for part in ("--set", change)]
    for command in (["plan", str(study)], ["run", str(study), "--runs", str(tmp_path)]):
        capsys.readouterr()
        assert main([*command, *sets]) == 2
        assert sentence in capsys.readouterr().err
    assert not [path for path in (tmp_path / "toy").glob("*") if path.is_dir()]  # no stage has begun


def test_what_a_later_model_cannot_have_is_said_before_the_first_one_works(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = f"models=[folder:{study.parent / 'model'}, folder:{study.parent / 'gpt2'}]"
    path = tmp_path / "two.yaml"
    path.write_text(study.read_text(encoding="utf-8").replace("model:\n  source:", "title:"), encoding="utf-8")
    assert main(["run", str(path), "--runs", str(tmp_path), "--set", models]) == 2
    assert "layers: gpt2 has no layer 2; allowed: 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "toy").exists()


def test_a_batch_of_more_tokens_than_there_are_is_said_before_the_model_runs(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(study), "--runs", str(tmp_path), "--set", "sae.batch_tokens=10885"]
    assert main(command) == 2
    assert "sae.batch_tokens is 10885, but there are only" in capsys.readouterr().err
    assert [path.name.partition("-")[0] for path in (tmp_path / "toy").iterdir() if path.is_dir()] == ["corpus"]
