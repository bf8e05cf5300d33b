"""Whole studies of models that are not transformers, Mamba and RWKV, with baselines beside the trained SAEs."""

from pathlib import Path

import pytest

from tests.pipeline.studies_for_tests import query, run, toy_study
from tests.pipeline.toy import save_toy_model, toy_mamba, toy_rwkv

SAES = [
    {"d_sae": 64, "k": 4, "batch_tokens": 256},
    {"architecture": "pca", "k": 4},
    {"architecture": "untrained", "d_sae": 64, "k": 4},
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architectures")
    models = {"mamba": toy_mamba(), "rwkv": toy_rwkv()}
    study = toy_study(
        folder,
        model=None,
        models=[f"folder:{save_toy_model(folder / name, model)}" for name, model in models.items()],
        corpus={"source": f"jsonl:{folder / 'corpus.jsonl'}", "tokens": 6400, "context_length": 32},
        layers=[0],
        sae=None,
        saes=SAES,
    )
    outcome = run(study, folder / "runs")
    assert outcome.returncode == 0, outcome.stderr
    return folder / "runs" / "toy.duckdb"


def test_every_architecture_gets_every_variant_and_sae(database: Path) -> None:
    assert query(database, "SELECT complete FROM study") == [(True,)]
    found = query(database, "SELECT model, name, count(*) FROM saes GROUP BY ALL ORDER BY ALL")
    assert found == [(model, name, 3) for model in ("mamba", "rwkv") for name in ("pca", "topk", "untrained")]
    kinds = {row[0] for row in query(database, "SELECT architecture FROM models")}
    assert kinds == {"MambaForCausalLM", "RwkvForCausalLM"}


def test_text_goes_into_all_but_the_control(database: Path) -> None:
    rows = query(
        database,
        """SELECT model, variant, any_value(value) FROM sae_metrics JOIN saes USING (sae)
           WHERE metric = 'token_identity_r2' AND name = 'topk' GROUP BY ALL""",
    )
    for model, variant, value in rows:
        assert (value < 0.1) == (variant == "control"), (model, variant, value)


def test_training_beats_the_untrained_sae(database: Path) -> None:
    rows = query(
        database,
        """SELECT model, variant, name, value FROM sae_metrics JOIN saes USING (sae) WHERE metric = 'fvu'""",
    )
    fvu = {(model, variant, name): value for model, variant, name, value in rows}
    for model, variant, name in fvu:
        if name == "topk":
            assert fvu[model, variant, "topk"] < fvu[model, variant, "untrained"]


def test_losses_are_measured_without_a_transformer(database: Path) -> None:
    rows = query(database, "SELECT value FROM sae_metrics WHERE metric = 'kl_zero' AND status = 'ok'")
    assert len(rows) == 18
    assert all(value > 0 for (value,) in rows)
