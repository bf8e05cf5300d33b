"""A study whose SAEs train on text of their own, run through the model piece by piece."""

import io
from pathlib import Path

import pytest

from pipeline import activations
from pipeline.config import load_study
from pipeline.study import run_study
from tests.pipeline.studies_for_tests import query, toy_study
from tests.pipeline.toy import write_toy_corpus

PIECES = 8


def made(folder: Path, training_tokens: int) -> Path:
    """The latents are those of 4,096 other tokens."""
    source = f"jsonl:{write_toy_corpus(folder / 'long.jsonl', n=300)}"
    corpus = {"tokens": 4096, "context_length": 32, "training_tokens": training_tokens, "drop_positions": 2}
    sae = {"d_sae": 96, "k": 4, "batch_tokens": 256, "learning_rate": 3e-3, "epochs": 1}
    variants = ["trained", "rerandomized_incl_embeddings"]
    study = toy_study(folder, corpus=corpus | {"source": source}, sae=sae, layers=[0], variants=variants)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "PIECE_TOKENS", 2048)
        return run_study(load_study(study), folder / "runs", io.StringIO())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("stream"), 2048 * PIECES)


def test_saes_train_on_the_training_tokens_and_latents_are_those_of_the_corpus(database: Path) -> None:
    kept = 2048 * PIECES * 30 // 32  # without two positions of every 32
    assert query(database, "SELECT DISTINCT training_tokens FROM saes") == [(kept // 256 * 256,)]
    assert query(database, "SELECT sum(len(tokens)) FROM sequences") == [(4096,)]


def test_more_training_tokens_explain_more_of_the_same_held_out_text(database: Path, tmp_path: Path) -> None:
    explained = """SELECT variant, layer, value FROM sae_metrics JOIN saes USING (sae)
                   WHERE metric = 'explained_variance' ORDER BY ALL"""
    little, much = (query(each, explained) for each in (made(tmp_path, 2048), database))
    assert len(much) == 2
    for (*one, few), (*other, many) in zip(little, much, strict=True):
        assert one == other
        assert many > few + 0.05


def test_nothing_of_the_stream_is_left_on_the_disk(database: Path) -> None:
    assert not list((database.parent / "toy").glob("activations-*"))
