"""Many random variants at a glance: which statistics are shown, where numbers stand, and what leads to all of them."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from statistics import fmean

import duckdb
import pytest
from small_study import Shape, write_small_study
from starlette.testclient import TestClient

from app.display.discrimination import ALL_TOGETHER, FEW, Heatmap, Seen, Telling, Tellings, heatmap
from app.main import create_app
from app.pages.report import write_report
from app.settings import Settings
from app.study.files import Row
from app.study.records import Metric, Variant

NAMES = ("trained", "scale:4", "control", "scale:0.25", "gain:2", "permuted")
SHAPE = Shape({"toy": (0, 1, 3)}, variants=NAMES, sae_seeds=2)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("telling") / "sweep.duckdb"
    write_small_study(path, latents=40, shape=SHAPE, top_contexts=1, tell=True)
    with duckdb.connect(str(path)) as connection:  # one number of which random latents have the larger values
        connection.execute(
            "UPDATE tells SET auroc = 0.2, low = 0.1, high = 0.3 WHERE matched AND statistic = 'token_entropy'"
            " AND random_sae IN (SELECT sae FROM saes WHERE variant = 'gain:2' AND layer = 3)"
        )
    return path


@pytest.fixture(scope="module")
def many(database: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(paths=(database,)))) as opened:
        yield opened


def row(auroc: float | None, low: float | None = None, high: float | None = None) -> Row:
    return {"auroc": auroc, "low": low, "high": high, "trained": 9, "random": 9, "reason": "" if auroc else "too few"}


def tellings(names: tuple[str, ...], variants: int, layers: tuple[int, ...] = (0,)) -> Tellings:
    """Statistics at .75 everywhere against some variants; the study's order is that of `names`."""
    scores = {n: (n.removesuffix("_auroc"), "random", "random") for n in names if n.endswith("_auroc")}
    metrics = {
        n: Metric(n, "latent", at, n, "", "", None, "linear", 0, 1, *scores.get(n, ())) for at, n in enumerate(names)
    }
    rows = {layer: {True: row(0.75, 0.7, 0.8)} for layer in layers}
    own = [Telling(n, n, None if n == ALL_TOGETHER else metrics[n], rows) for n in names]
    return [(Variant(str(at), at, str(at), "", False, 0), own) for at in range(variants)]


def shown(found: Heatmap | None) -> list[str]:
    assert found is not None
    return [telling.name for telling in found.statistics]


def test_an_interval_that_holds_one_half_has_no_colour() -> None:
    found = [Seen(row(*values)) for values in ((0.52, 0.5, 0.6), (0.4, 0.3, 0.5), (0.52, 0.501, 0.6), (0.1, 0, 0.2))]
    assert [seen.side for seen in found] == ["holds", "holds", "above", "below"]
    assert [seen.shade for seen in found] == [0, 0, 1, 8]
    assert [(seen.side, seen.shade) for seen in (Seen(), Seen(row(None)))] == [("none", 0)] * 2


def test_few_variants_have_no_heatmap() -> None:
    assert heatmap(tellings(("density", "x"), FEW), [0]) is None
    assert heatmap(tellings(("density", "x"), FEW + 1), [0]) is not None


def test_the_headline_score_comes_first_and_what_says_nothing_new_is_left_out() -> None:
    names = ("density", "max_activation", "decoder_norm", "firings", "detection_auroc", "fuzzing_auroc",
             "own", ALL_TOGETHER)  # fmt: skip
    found = tellings(names, 4)
    worth = ["detection_auroc", "fuzzing_auroc", ALL_TOGETHER, "max_activation", "decoder_norm",
             "own"]  # fmt: skip
    assert shown(heatmap(found, [0])) == worth
    layers = tuple(range(3))
    whole = heatmap(tellings(names, 4, layers), layers, most=8)
    assert shown(whole) == worth[:2]
    assert whole is not None
    assert whole.left_out == 4
    assert shown(heatmap(found, range(30), most=8)) == worth[:1]  # one, however many layers


def test_a_variant_without_a_row_has_an_empty_cell() -> None:
    found = tellings(("detection_auroc", "x"), 4)
    found[1] = (found[1][0], found[1][1][:1])
    whole = heatmap(found, [0, 7])
    assert whole is not None
    assert [[seen.side for seen in cells] for cells in whole.rows[1][1]] == [["above", "none"], ["none", "none"]]
    assert [[dict(counts) for counts in group] for group in whole.counts] == [
        [{"above": 4}, {"none": 4}],
        [{"above": 3, "none": 1}, {"none": 4}],
    ]


def cells_of(text: str, label: str) -> list[str]:
    """The cells of a variant's row in the heatmap."""
    table = text[text.index('<table class="heat') : text.index("</table>", text.index('<table class="heat'))]
    line = next(line for line in table.split("<tr>") if f"{label}</a>" in line or f"{label}</span>" in line)
    return re.findall(r"<td.*?</td>", line, re.S)


@pytest.mark.parametrize(("address", "layers"), [("/s/sweep", (0, 1, 3)), ("/s/sweep?layer=3", (3,))])
def test_every_cell_is_the_matched_auroc_of_its_place(
    many: TestClient, database: Path, address: str, layers: tuple[int, ...]
) -> None:
    page = many.get(address)
    glance = page.context["glance"]
    assert [variant.variant for variant, _ in glance.rows] == list(NAMES[1:])
    assert shown(glance)[:3] == ["detection_auroc", "fuzzing_auroc", ALL_TOGETHER]
    assert len(glance.statistics) * len(layers) <= 24
    with duckdb.connect(str(database), read_only=True) as connection:
        for variant in NAMES[1:]:
            known = connection.execute(
                "SELECT layer, statistic, auroc, low, high FROM tells JOIN saes ON sae = random_sae"
                " WHERE matched AND sae_seed = 0 AND variant = ?",
                [variant],
            ).fetchall()
            found = {(layer, name): values for layer, name, *values in known}
            cells = cells_of(page.text, variant)
            wanted = [found[layer, name] for name in shown(glance) for layer in layers]
            assert len(cells) == len(wanted)
            for cell, (auroc, low, high) in zip(cells, wanted, strict=True):
                assert f">{auroc:.2f}<" in cell
                assert f"95% interval {low:.3f} to {high:.3f}" in cell
                side = "above" if low > 0.5 else "below" if high < 0.5 else "holds"
                assert re.search(rf'class="[^"]*\b{side}\b', cell)
                assert ("cannot tell" in cell) == (side == "holds")


def test_a_variants_name_leads_to_all_its_numbers(many: TestClient) -> None:
    plain = many.get("/s/sweep?layer=3").text
    assert 'class="tells' not in plain
    href = re.search(r'<a class="variant v3" href="([^"]*)"', plain)
    assert href is not None
    assert unescape(href[1]) == "/s/sweep?layer=3&variant=scale:0.25#against"
    page = many.get(unescape(href[1]))
    assert page.text.count('class="tells') == 1
    full = page.text[page.text.index('id="against" open') :]
    assert "density</span></th>" in full[: full.index("</table>")]
    assert 'href="/s/sweep/compare?right=scale:0.25&amp;layer=1"' in full
    assert 'href="/s/sweep?layer=0&amp;variant=scale:0.25#h-tells"' in page.text
    assert 'href="/s/sweep?sae_seed=1&amp;layer=3&amp;variant=scale:0.25"' in page.text
    assert 'hx-get="/s/sweep?layer=3&amp;variant=scale:0.25" hx-trigger="study-grew' in page.text


def test_the_sum_says_against_how_many_variants_a_number_can_tell(many: TestClient) -> None:
    page = many.get("/s/sweep")
    foot = page.text[page.text.index("<tfoot>") : page.text.index("</tfoot>")]
    told = [int(n) for n in re.findall(r">(\d+)</td>", foot)]
    sides = [[seen.side for cells in groups for seen in cells] for _, groups in page.context["glance"].rows]
    assert {"above", "below", "holds"} <= {side for line in sides for side in line}
    assert told == [sum(side in ("above", "below") for side in column) for column in zip(*sides, strict=True)]
    assert told[0] == 5  # small_study draws the trained latents' scores above all others
    assert "can tell, of 5" in foot


def test_what_is_not_there_is_said(many: TestClient) -> None:
    response = many.get("/s/sweep?layer=2")
    assert response.status_code == 400
    assert "one of: 0, 1, 3" in response.text
    assert many.get("/s/sweep?variant=other").status_code == 404


def test_few_variants_have_their_tables_as_ever(client: TestClient) -> None:
    page = client.get("/s/small")
    assert page.context["glance"] is None
    assert page.text.count('class="tells') == 2
    assert 'class="heat' not in page.text


def test_the_report_has_the_same_over_all_seeds(database: Path, tmp_path: Path) -> None:
    write_report(database, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    with duckdb.connect(str(database), read_only=True) as connection:
        known = connection.execute(
            "SELECT auroc FROM tells JOIN saes ON sae = random_sae WHERE matched AND statistic = 'detection_auroc'"
            " AND variant = 'control' AND layer = 3"
        ).fetchall()
    values = [auroc for (auroc,) in known]
    assert len(values) == 2
    cell = cells_of(text, "control")[2]
    assert f">{fmean(values):.2f}<" in cell
    assert f"from smallest to largest {min(values):.3f} to {max(values):.3f}" in cell
    folded = text[text.index('<details class="all"><summary>All statistics') :]
    assert folded[: folded.index("</details>")].count('class="tells') == 5
