"""A study along every axis at once: two models, two hook points, several seeds of both kinds."""

import io
from pathlib import Path

import pytest
from sae_lens import SAE

from pipeline.config import load_study
from pipeline.study import run_study
from tests.pipeline.studies_for_tests import query, run, toy_study
from tests.pipeline.toy import save_toy_model, toy_gpt2


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("axes")
    other = save_toy_model(folder / "other", toy_gpt2(n_embd=16))
    study = toy_study(
        folder,
        model=None,
        models=[
            {"source": f"folder:{folder / 'model'}", "layers": [2]},
            {"source": f"folder:{other}", "layers": "every 2"},
        ],
        corpus={"source": f"jsonl:{folder / 'corpus.jsonl'}", "tokens": 6400, "context_length": 32},
        variants=["trained", "rerandomized_incl_embeddings"],
        hooks=["resid_post", "mlp_out"],
        sae={"name": "small", "d_sae": 64, "k": 4, "batch_tokens": 256},
        collect={"window": 16, "entropy_examples": 20, "match": "trained"},
        variant_seeds=2,
        sae_seeds=2,
    )
    outcome = run(study, folder / "runs")
    assert outcome.returncode == 0, outcome.stderr
    return folder / "runs" / "toy.duckdb"


def test_there_is_one_sae_for_every_setting_variant_and_layer(database: Path) -> None:
    counts = query(database, "SELECT model, count(*) FROM saes GROUP BY ALL ORDER BY ALL")
    draws, seeds, hooks = 3, 2, 2
    assert counts == [("model", draws * seeds * hooks), ("other", draws * seeds * hooks)]
    key = "model, hook, name, variant_seed, sae_seed, variant, layer"
    assert query(database, f"SELECT {key} FROM saes GROUP BY ALL HAVING count(*) > 1") == []
    assert query(database, "SELECT planned_saes, complete FROM study") == [(24, True)]


def test_seeds_and_hook_points_give_other_saes(database: Path) -> None:
    ((saes, different),) = query(database, "SELECT count(*), count(DISTINCT sha256) FROM saes")
    assert saes == different == 24


def test_each_draw_of_a_variant_is_hashed(database: Path) -> None:
    rows = query(
        database,
        """SELECT model, variant, count(DISTINCT variant_seed), count(DISTINCT sha256), count(*)
           FROM tensors WHERE kind = 'weight' GROUP BY ALL ORDER BY ALL""",
    )
    assert [(model, variant, draws) for model, variant, draws, *_ in rows] == [
        ("model", "rerandomized_incl_embeddings", 2),
        ("model", "trained", 1),
        ("other", "rerandomized_incl_embeddings", 2),
        ("other", "trained", 1),
    ]
    assert all(hashes == tensors for *_, hashes, tensors in rows)


def test_the_saes_can_be_loaded_and_fit_their_hook_points(database: Path) -> None:
    for path, d_in, d_sae, hook in query(
        database, "SELECT path, d_in, d_sae, hook_name FROM saes WHERE variant_seed = 0 AND sae_seed = 0"
    ):
        sae = SAE.load_from_disk(database.parent / path)
        assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.metadata.hook_name) == (d_in, d_sae, hook)


def test_text_belongs_to_a_model(database: Path) -> None:
    assert query(database, "SELECT count(DISTINCT model) FROM vocabulary") == [(2,)]
    lost = query(
        database,
        """SELECT count(*) FROM contexts JOIN saes USING (sae)
           LEFT JOIN sequences USING (model, sequence) WHERE sequences.tokens IS NULL""",
    )
    assert lost == [(0,)]


def test_only_saes_in_one_place_are_matched(database: Path) -> None:
    pairs = query(
        database,
        """SELECT DISTINCT a.model = b.model, a.hook = b.hook, a.name = b.name, a.layer = b.layer,
                  a.sae_seed = b.sae_seed, a.variant <> b.variant
           FROM matches m JOIN saes a USING (sae) JOIN saes b ON b.sae = m.other_sae""",
    )
    assert pairs == [(True,) * 6]
    ((unmatched,),) = query(database, "SELECT count(*) FROM saes WHERE sae NOT IN (SELECT sae FROM matches)")
    assert unmatched == 0


def test_every_random_sae_is_told_from_the_trained_one_in_its_place(database: Path) -> None:
    rows = query(
        database,
        """SELECT count(DISTINCT random_sae), bool_and(a.model = b.model AND a.hook = b.hook AND a.name = b.name
                  AND a.layer = b.layer AND a.sae_seed = b.sae_seed AND a.variant = 'trained')
           FROM tells JOIN saes a ON a.sae = trained_sae JOIN saes b ON b.sae = random_sae""",
    )
    assert rows == [(16, True)]


def test_seeds_agree_in_part(database: Path) -> None:
    values = query(database, "SELECT value FROM sae_metrics WHERE metric = 'seed_stability' AND status = 'ok'")
    assert len(values) == 24
    assert all(0.1 < value < 0.99 for (value,) in values)


def test_differences_have_an_interval_over_seeds(database: Path) -> None:
    rows = query(
        database,
        """SELECT trained_saes, random_saes, low < difference AND difference < high FROM differences
           WHERE metric = 'fvu' AND name = 'small' AND status = 'ok'""",
    )
    assert rows == [(2, 4, True)] * 4


def test_what_has_no_chance_in_it_is_made_once_and_has_no_interval_over_seeds(tmp_path: Path) -> None:
    saes = [{"d_sae": 64, "k": 4, "batch_tokens": 256}, {"architecture": "pca", "k": 4}]
    study = toy_study(
        tmp_path, sae=None, saes=saes, sae_seeds=2, layers=[2], variants=["trained", "rerandomized_incl_embeddings"]
    )
    database = run_study(load_study(study), tmp_path / "runs", io.StringIO())
    counts = query(database, "SELECT name, count(*), max(sae_seed) FROM saes GROUP BY ALL ORDER BY ALL")
    assert counts == [("pca", 2, 0), ("topk", 4, 1)]
    assert query(database, "SELECT planned_saes, complete FROM study") == [(6, True)]
    found = query(database, "SELECT name, status, reason FROM differences WHERE metric = 'fvu' ORDER BY name")
    assert found == [("pca", "not_applicable", "one seed on a side: no interval"), ("topk", "ok", "")]
    stable = query(
        database,
        "SELECT name, status FROM sae_metrics JOIN saes USING (sae) WHERE metric = 'seed_stability' GROUP BY ALL",
    )
    assert set(stable) == {("pca", "not_applicable"), ("topk", "ok")}
