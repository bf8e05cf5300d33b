"""What is damaged between two runs is made again: a sample of the trials in `damage.py`."""

from collections.abc import Iterator

import pytest

from tests.pipeline.damage import WAYS, Trials, Way, delete, double, flip, kind_of, trials, truncate

SAMPLE: set[tuple[str, Way]] = {
    ("toy-gguf-1.2/model.safetensors", flip),
    ("corpus/corpus.safetensors", flip),
    ("sae/sae_weights.safetensors", flip),
    ("codes/codes.safetensors", truncate),
    ("scores/scores.parquet", delete),
    ("sampled/manifest.txt", truncate),
    ("answers/answers.jsonl", flip),
    ("activations.partial/N.safetensors", flip),
    ("activations/N.safetensors", double),
}
"""One of every kind that once gave other numbers in silence, and of every way."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    with trials(tmp_path_factory.mktemp("trials")) as made:
        yield made


def test_a_study_whose_files_are_damaged_ends_with_the_same_content_and_says_so(made: Trials) -> None:
    chosen = [(path, way) for path, way in made.all() if (kind_of(path), way) in SAMPLE]
    assert len(chosen) == len(SAMPLE)
    wrong = {f"{kind_of(path)}, {way.__name__}": made.wrong(path, way) for path, way in chosen}
    assert {trial: what for trial, what in wrong.items() if what} == {}


def test_the_trials_try_every_stage_in_every_way(made: Trials) -> None:
    stages = {kind_of(path).partition("/")[0] for path, _ in made.all()}
    known = {
        "corpus",
        "variant",
        "activations",
        "sae",
        "codes",
        "latents",
        "scores",
        "sampled",
        "specifications",
        "losses",
    }
    known |= {"matches", "stability"}
    assert known | {"activations.partial", "answers", "toy", "toy-gguf-1.2"} <= stages
    assert len(made.all()) == len({kind_of(path) for path, _ in made.all()}) * len(WAYS)
