"""A study in which a variant overflows and an SAE diverges: each is a state with its reason, and the rest goes on."""

from pathlib import Path

import duckdb
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.pages.report import write_report
from app.settings import Settings
from lineup import main
from pipeline.measures.metrics import NO_VARIANCE
from tests.pipeline.studies_for_tests import query, run, toy_study
from tests.pipeline.toy import save_toy_model, toy_gpt2

WIDE = "scale:1e30"
OVERFLOWS = "the variant's activations are beyond what float32 holds on most tokens"
DIVERGES = "the SAE has diverged in training: its weights are no finite numbers"
SAE = {"d_sae": 96, "k": 4, "batch_tokens": 256}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three variants, each with an SAE that learns and one that diverges."""
    path = toy_study(
        tmp_path_factory.mktemp("toy"),
        variants=["trained", "scale:1e30", "rerandomized_incl_embeddings"],
        layers=[0],
        sae=None,
        saes=[
            SAE | {"learning_rate": 3e-3},
            SAE | {"name": "fast", "architecture": "standard", "learning_rate": 1e9},
        ],
        autointerp={"specifications": {"latents": 40, "examples": [20], "windows": [16]}},
    )
    folder = tmp_path_factory.mktemp("runs")
    outcome = run(path, folder)
    assert outcome.returncode == 0, outcome.stderr
    (folder / "stderr").write_text(outcome.stderr, encoding="utf-8")
    return folder


def test_no_number_of_the_database_is_infinite_or_none(runs: Path) -> None:
    with duckdb.connect(str(runs / "toy.duckdb"), read_only=True) as connection:
        columns = connection.execute("SELECT table_name, column_name, data_type FROM duckdb_columns()").fetchall()
        for table, column, kind in columns:
            values = {"DOUBLE": f'"{column}"', "FLOAT": f'"{column}"', "FLOAT[]": f'unnest("{column}")'}.get(kind)
            if values is not None:
                found = f"SELECT count(*) FROM (SELECT {values} AS value FROM {table}) WHERE NOT isfinite(value)"
                assert connection.execute(found).fetchone() == (0,), f"{table}.{column}"


def test_metrics_say_why_they_do_not_apply_and_others_are_there(runs: Path) -> None:
    found = query(
        runs / "toy.duckdb",
        """SELECT variant, name, list(DISTINCT reason ORDER BY reason) FILTER (metric <> 'seed_stability'
           AND metric NOT LIKE '%_recovered'), count(value) FROM sae_metrics JOIN saes USING (sae)
           WHERE status <> 'ok' OR metric = 'l0' GROUP BY ALL ORDER BY ALL""",
    )
    reasons = {(variant, name): [reason for reason in why if reason] for variant, name, why, _ in found}
    for variant in ("trained", "rerandomized_incl_embeddings"):
        assert reasons[variant, "topk"] == []
        assert reasons[variant, "fast"] == [DIVERGES]
    assert reasons[WIDE, "topk"] == reasons[WIDE, "fast"] == [OVERFLOWS]
    known = query(
        runs / "toy.duckdb",
        """SELECT DISTINCT metric FROM sae_metrics JOIN saes USING (sae)
           WHERE name = 'fast' AND variant = 'trained' AND status = 'ok'""",
    )
    assert {"token_identity_r2", "ce_clean", "ce_zero", "kl_zero", "normalisation"} <= {metric for (metric,) in known}
    assert not {"fvu", "alive", "l0", "ce_sae", "kl_sae"} & {metric for (metric,) in known}


def test_latents_of_an_sae_that_is_none_say_so_and_have_no_values(runs: Path) -> None:
    states = query(
        runs / "toy.duckdb",
        """SELECT DISTINCT name, state, firings, density, max_activation FROM latents JOIN saes USING (sae)
           WHERE score_state = 'sae_failed' ORDER BY ALL""",
    )
    assert states == [(name, "dead", 0, 0.0, None) for name in ("fast", "topk")]
    counted = "SELECT name, variant FROM latents JOIN saes USING (sae) WHERE score_state = 'sae_failed' GROUP BY ALL"
    failed = query(runs / "toy.duckdb", counted)
    diverged = {("fast", variant) for variant in ("trained", "rerandomized_incl_embeddings")}
    assert set(failed) == {("fast", WIDE), ("topk", WIDE)} | diverged


def test_the_terminal_says_so_once_for_each_sae(runs: Path) -> None:
    lines = (runs / "stderr").read_text(encoding="utf-8").splitlines()
    assert sum(DIVERGES in line for line in lines) == 2
    assert sum(OVERFLOWS in line for line in lines) == 2


def test_activations_that_do_not_vary_have_no_variance_to_explain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = toy_gpt2()
    for block in model.transformer.h:
        block.mlp.c_proj.weight.zero_()  # what is left is the bias, the same at every token
    save_toy_model(tmp_path / "constant", model)
    changes: dict[str, object] = {"model": f"folder:{tmp_path / 'constant'}", "hooks": ["mlp_out"], "layers": [0]}
    path = toy_study(tmp_path, variants=["trained"], autointerp={"specifications": {"latents": 0}}, **changes)
    assert main(["run", str(path), "--runs", str(tmp_path)]) == 0, capsys.readouterr().err
    found = query(tmp_path / "toy.duckdb", "SELECT metric FROM sae_metrics WHERE reason = ?", NO_VARIANCE)
    assert set(found) == {(n,) for n in ("explained_variance", "fvu", "token_identity_r2", "token_identity_floor")}


def test_every_page_shows_it_and_so_does_the_report(runs: Path, tmp_path: Path) -> None:
    client = TestClient(create_app(Settings(paths=(runs,), hosts=("testserver",))))
    for name in ("topk", "fast"):
        pages = ["", "/latents", f"/latents?variant={WIDE}&layer=0", "/plots", "/compare", "/tensors"]
        for page in [*pages, f"/latent/{WIDE}/0/3", "/latent/trained/0/3", f"/compare?right={WIDE}&layer=0"]:
            response = client.get(f"/s/toy{page}{'&' if '?' in page else '?'}sae={name}")
            assert response.status_code == 200, (response.url, response.text[-3000:])
            assert "NaN" not in response.text
            assert "not finite" not in response.text
    overview = client.get("/s/toy?sae=fast").text
    assert DIVERGES in overview
    assert "96 SAE failed" in overview
    write_report(runs / "toy.duckdb", tmp_path / "toy.html")
    assert "NaN" not in (tmp_path / "toy.html").read_text(encoding="utf-8")
