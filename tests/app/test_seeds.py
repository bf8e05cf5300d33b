"""One seed or all of them together: the same tables, grouped by variant and layer."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import duckdb
import pytest
from small_study import SECOND, Shape, write_small_study
from starlette.testclient import TestClient

from app.blind.evidence import identity
from app.display import tables
from app.main import create_app
from app.pages.report import write_report
from app.settings import Settings
from app.study import axes, queries
from app.study.files import Row
from app.study.study import Studies, Study
from core.text import number

SHAPE = Shape({"toy": (0, 1), SECOND: (0, 3)}, variant_seeds=2, sae_seeds=2)
ALL = "/s/seeds?seeds=all"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeds") / "seeds.duckdb"
    write_small_study(path, latents=24, shape=SHAPE, top_contexts=2, tell=True)
    return path


@pytest.fixture(scope="module")
def client(database: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(paths=(database,)))) as opened:
        yield opened


@pytest.fixture(scope="module")
def study(database: Path) -> Iterator[Study]:
    with Studies([database], query_seconds=60).open("seeds") as opened:
        yield opened


def rows(study: Study, sql: str) -> list[Row]:
    """Rows by SAE, `sae` replaced by the place where it stands; only the SAEs that are shown."""
    places = {sae.sae: {"variant": sae.variant, "layer": sae.layer} for sae in study.saes}
    found = study.reader.rows(sql)
    return [places[row["sae"]] | {k: v for k, v in row.items() if k != "sae"} for row in found if row["sae"] in places]


def same(one: list[Row], other: list[Row]) -> bool:
    """Whether two lists have the same rows, in whatever order."""
    return sorted(one, key=repr) == sorted(({key: row[key] for key in one[0]} for row in other), key=repr)


def test_of_one_seed_every_query_gives_the_rows_of_the_single_saes(study: Study) -> None:
    """The old way, SAE by SAE, beside the new one, grouped by variant and layer; at every setting."""
    settings = axes.settings(study.all_saes)
    assert len(settings) == 8
    for one in map(study.at, settings):
        reader, saes = one.reader, one.numbers
        assert [len(there) for there in one.places.values()] == [1] * 6
        old = rows(one, "SELECT sae, metric, value, NULL AS low, NULL AS high FROM sae_metrics")
        assert same(old, queries.sae_metrics(reader, saes))
        reasons = {row["reason"] for row in rows(one, "SELECT sae, reason FROM sae_metrics WHERE value IS NULL")}
        assert {row["reason"] for row in queries.sae_metrics(reader, saes) if row["value"] is None} == reasons
        quartiles = "quantile_cont(detection_auroc, [0.25, 0.5, 0.75]) FILTER (isfinite(detection_auroc))"
        old = rows(
            one,
            "SELECT sae, count(*) AS latents, count(*) FILTER (state = 'alive') AS alive, count(detection_auroc) AS"
            f' "count detection_auroc", {quartiles} AS "quartiles detection_auroc" FROM latents GROUP BY sae',
        )
        assert same(old, list(queries.summaries(reader, saes, ["detection_auroc"]).values()))
        old = rows(one, "SELECT sae, score_state, count(*) AS latents FROM latents GROUP BY ALL")
        assert {(r["variant"], r["layer"], r["score_state"]): r["latents"] for r in old} == {
            (*place, state): n
            for place, counts in queries.score_states(reader, saes).items()
            for state, n in counts.items()
        }
        old = rows(
            one,
            "SELECT random_sae AS sae, statistic, matched, auroc, low, high, trained, random, reason FROM tells",
        )
        assert same(old, queries.tells(reader, saes))
        old = rows(one, "SELECT sae, latent, density AS x, token_entropy AS y FROM latents WHERE state = 'alive'")
        assert same(old, queries.sample(reader, saes, ("density", "token_entropy"), most=100))
        some = queries.sample(reader, saes, ("density", "token_entropy"), most=5)
        assert len(some) == 30
        assert {str(row) for row in some} <= {
            str(row) for row in queries.sample(reader, saes, ("density", "token_entropy"), 9)
        }
        bins = "least(9, floor(token_entropy / 5 * 10))::INTEGER"
        old = rows(
            one, f"SELECT sae, {bins} AS bin, count(*) AS latents FROM latents WHERE token_entropy >= 0 GROUP BY ALL"
        )
        assert same(old, queries.distribution(reader, saes, "token_entropy", (0.0, 5.0), 10, log=False))
        counted = "count(auroc) AS latents, median(auroc) AS median"
        old = rows(one, f"SELECT sae, scorer, {counted} FROM scores WHERE NOT shuffled GROUP BY ALL")
        assert same(old, queries.scores(reader, saes))


def test_all_seeds_are_means_and_medians_over_the_saes_of_a_place(client: TestClient, database: Path) -> None:
    context = client.get(ALL).context
    place = "model = 'toy' AND variant = 'control' AND layer = 1"
    with duckdb.connect(str(database), read_only=True) as connection:
        values = connection.execute(
            f"SELECT value FROM sae_metrics JOIN saes USING (sae) WHERE metric = 'l0' AND {place}"
        ).fetchall()
        scores = connection.execute(
            f"SELECT detection_auroc FROM latents JOIN saes USING (sae) WHERE detection_auroc IS NOT NULL AND {place}"
        ).fetchall()
        aurocs = connection.execute(
            "SELECT auroc FROM tells JOIN saes ON sae = random_sae"
            f" WHERE matched AND statistic = 'max_activation' AND {place}"
        ).fetchall()
    l0 = next(table for table in context["tables"] if table.metric.metric == "l0").lines[1].cells[2]
    assert len(values) == 4
    assert (l0.value, l0.low, l0.high) == (pytest.approx(fmean(v for (v,) in values)), min(values)[0], max(values)[0])
    detection = next(table for table in context["scores"] if table.metric.metric == "detection_auroc").lines[1].cells[2]
    middle = sorted(scores)
    assert len(middle) % 2 == 0
    assert detection.value == pytest.approx((middle[len(middle) // 2 - 1][0] + middle[len(middle) // 2][0]) / 2)
    (tells,) = [t for v, own in context["tells"] if v.variant == "control" for t in own if t.name == "max_activation"]
    told = tells.layers[1][True]
    assert len(aurocs) == 4
    assert told["auroc"] == pytest.approx(fmean(auroc for (auroc,) in aurocs))
    assert (told["low"], told["high"]) == (min(aurocs)[0], max(aurocs)[0])
    share = next(s for s in context["shares"] if (s.variant.variant, s.layer) == ("control", 1))
    assert (share.latents, share.scored) == (4 * 24, len(scores))


def test_the_page_of_all_seeds_and_the_report_have_the_same_tables(client: TestClient, database: Path) -> None:
    write_report(database, database.with_name("seeds.html"))
    report = database.with_name("seeds.html").read_text(encoding="utf-8")
    for model in ("toy", SECOND):
        context = client.get(ALL, params={"seeds": "all", "model": model}).context
        part = report[report.index(f"{model} · resid_post · topk</h2>") :]
        found = [table for name in ("tables", "scores", "statistics") for table in context[name] if not table.empty]
        assert len(found) > 15
        for table in found:
            shown = part[part.index(f">{table.metric.label}</span>") :]
            shown = shown[: shown.index("</table>")]
            for cell in (cell for line in table.lines for cell in line.cells if cell.low is not None):
                assert f"{number(cell.value)}<small>{number(cell.low)}–{number(cell.high)}</small>" in shown


def test_plots_of_all_seeds_have_the_latents_of_all(client: TestClient) -> None:
    one, every = (client.get(f"/s/seeds/plots{query}").context for query in ("", "?seeds=all"))
    for alone, together in zip(one["distributions"], every["distributions"], strict=True):
        ours, theirs = ({v.variant: all_ for v, _, all_ in d["counts"]} for d in (alone, together))
        assert ours == {"trained": 24, "rerandomized_incl_embeddings": 24, "control": 24}
        assert theirs == {"trained": 48, "rerandomized_incl_embeddings": 96, "control": 96}
        assert sum(together["figure"]["data"][2]["customdata"]) > 3 * sum(alone["figure"]["data"][2]["customdata"])
    (figure,) = [figure for metric, figure in every["over_layers"] if metric.metric == "l0"]
    assert all(above > 0 for trace in figure["data"] for above in trace["error_y"]["array"])


@pytest.mark.parametrize("page", ["", "/plots", "/protocols", "/tensors"])
def test_all_seeds_are_a_choice_of_the_bar_that_takes_the_place_of_the_seeds(client: TestClient, page: str) -> None:
    bars = {
        query: {choice.axis.key: choice for choice in client.get(f"/s/seeds{page}{query}").context["bar"]}
        for query in ("", "?seeds=all", "?sae_seed=1&seeds=all&model=org/toy b")
    }
    assert list(bars[""]) == ["model", "variant_seed", "sae_seed", "seeds"]
    assert list(bars["?seeds=all"]) == ["model", "seeds"]
    assert [choices["seeds"].chosen for choices in bars.values()] == ["one", "all", "all"]
    one, every = bars[""]["seeds"].options
    assert (one.href, every.href) == (f"/s/seeds{page}", f"/s/seeds{page}?seeds=all")
    back = bars["?sae_seed=1&seeds=all&model=org/toy b"]
    assert back["seeds"].options[0].href == f"/s/seeds{page}?model=org%2Ftoy+b&sae_seed=1"
    assert back["model"].options[0].href == f"/s/seeds{page}?sae_seed=1&seeds=all"


@pytest.mark.parametrize("page", ["/latents", "/latent/control/0/1", "/compare", "/blind"])
def test_a_page_of_one_sae_shows_the_first_seed_and_leads_back_to_all(client: TestClient, page: str) -> None:
    response = client.get(f"/s/seeds{page}?seeds=all")
    alone = client.get(f"/s/seeds{page}")
    study = response.context["study"]
    assert study.numbers == alone.context["study"].numbers
    assert [choice.axis.key for choice in response.context["bar"]] == ["model", "variant_seed", "sae_seed"]
    assert [choice.chosen for choice in response.context["bar"]] == ["toy", "0", "0"]
    assert 'href="/s/seeds?seeds=all" data-key="o"' in response.text
    assert client.get(f"/s/seeds{page}?seeds=all&sae_seed=1").context["study"].setting.sae_seed == 1


def test_an_experiment_belongs_to_single_saes(database: Path) -> None:
    with Studies([database], query_seconds=60).open("seeds", seeds="all", sae_seed="1") as study:
        assert study.full_name == "seeds?sae_seed=1"
        assert identity(study)["setting"]["sae_seed"] == 1
        assert len(identity(study)["saes"]) == len(study.saes) == 6


def test_what_seeds_may_be_is_said(client: TestClient) -> None:
    response = client.get("/s/seeds?seeds=7")
    assert response.status_code == 404
    assert "There is: all." in response.text


def test_a_study_with_one_seed_has_no_choice_and_the_same_page(tmp_path: Path) -> None:
    write_small_study(tmp_path / "one.duckdb", latents=20, shape=Shape({"toy": (0,)}, saes=("topk", "pca")), tell=True)
    with TestClient(create_app(Settings(paths=(tmp_path,)))) as client:
        page, pooled = client.get("/s/one"), client.get("/s/one?seeds=all")
        assert [choice.axis.key for choice in page.context["bar"]] == ["sae"]
        assert pooled.text == page.text


def test_where_a_cell_stands_is_on_the_axis_of_its_table(study: Study) -> None:
    for table in tables.metric_tables(study):
        places = [table.at(cell) for line in table.lines for cell in line.cells if cell.value is not None]
        assert all(place is None or 0 <= place <= 1 for place in places)
        low, high = table.span
        middle = tables.Cell(study.variants[0], (low + high) / 2)
        assert table.at(middle) == pytest.approx(0.5) or low == high


def test_a_place_that_has_one_seed_only_yet_stands_beside_others(tmp_path: Path) -> None:
    """As while a study is being built: the first layer has two trainings of the trained variant, the last one."""
    write_small_study(tmp_path / "seeds.duckdb", latents=12, shape=Shape({"toy": (0, 1)}, sae_seeds=2), top_contexts=1)
    with duckdb.connect(str(tmp_path / "seeds.duckdb")) as connection:
        gone = "(SELECT sae FROM saes WHERE sae_seed = 1 AND layer = 1 AND variant = 'trained')"
        for table in ("latents", "sae_metrics", "saes"):
            connection.execute(f"DELETE FROM {table} WHERE sae IN {gone}")
    write_report(tmp_path / "seeds.duckdb", tmp_path / "seeds.html")
    with TestClient(create_app(Settings(paths=(tmp_path,)))) as client:
        cells = [line.cells[0] for line in client.get(ALL).context["tables"][0].lines]
        assert [cell.low is None for cell in cells] == [False, True]
        figure = client.get("/s/seeds/plots?seeds=all").context["over_layers"][0][1]
    above = figure["data"][0]["error_y"]["array"]
    assert above[0] > 0 == above[1]
