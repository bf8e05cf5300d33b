"""The report: one file with everything in it, numbers over all seeds, and hostile text as text."""

import re
from pathlib import Path
from statistics import fmean

import duckdb
import pytest
from small_study import FAILURE, METRICS, SCRIPT, SECOND, Shape, write_small_study

from app.display import svg
from app.display.charts import Curve, Range
from app.pages.report import write_report
from app.study.records import Metric
from core.errors import UserError
from core.text import number

SHAPE = Shape({"toy": (0, 1), SECOND: (0, 3)}, saes=("topk", "pca"), variant_seeds=2, sae_seeds=2)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "wide.duckdb"
    write_small_study(path, latents=20, shape=SHAPE, top_contexts=1)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "INSERT INTO tells SELECT t.sae, r.sae, 'density', true, (20 + r.sae_seed + 2 * r.variant_seed) / 40, 0.4,"
            " 0.6, 18, 18, 'ok', '' FROM saes t JOIN saes r USING (model, hook, name, sae_seed, layer)"
            " WHERE t.variant = 'trained' AND r.variant != 'trained'"
        )
    return path


@pytest.fixture(scope="module")
def text(database: Path) -> str:
    write_report(database, database.with_name("report.html"))
    return database.with_name("report.html").read_text(encoding="utf-8")


def row(database: Path, sql: str) -> tuple[object, ...]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(sql).fetchall()[0]


def table_after(text: str, heading: str, metric: str, nth: int = 0) -> str:
    """The table of a metric in the part of the report under a heading."""
    part = text[re.search(rf"<h2 id=[^>]*>{re.escape(heading)}</h2>", text).end() :]  # type: ignore[union-attr]
    start = [found.start() for found in re.finditer(rf">{re.escape(metric)}</span>", part)][nth]
    return part[start : part.index("</table>", start)]


def test_the_file_needs_nothing_else(text: str) -> None:
    assert "<script" not in text
    assert not re.findall(r'(?:src|srcset|action|poster)="', text)
    assert {link[:1] for link in re.findall(r'href="([^"]*)"', text)} <= {"#", "d"}
    assert not re.findall(r"url\(|@import|https?://", text)
    assert SCRIPT.replace("<", "&lt;").replace(">", "&gt;") in text


def test_every_setting_metric_and_sae_is_in_it(database: Path, text: str) -> None:
    for model in ("toy", SECOND):
        for name in ("topk", "pca"):
            assert f"{model} · resid_post · {name}</h2>" in text
    definitions = text[text.index('id="definitions"') :]
    for metric in METRICS:
        assert metric[2] in definitions
    with duckdb.connect(str(database), read_only=True) as connection:
        hashes = [sha for (sha,) in connection.execute("SELECT sha256 FROM saes").fetchall()]
    assert len(hashes) == 80
    assert all(sha in text for sha in hashes)
    assert 'id="across"' in text


def test_metrics_are_means_over_seeds_with_the_difference(database: Path, text: str) -> None:
    where = "model = 'toy' AND name = 'topk' AND layer = 1 AND variant = 'control' AND metric = 'l0'"
    values = "avg(value), min(value), max(value), count(*)"
    mean, low, high, n = row(database, f"SELECT {values} FROM sae_metrics JOIN saes USING (sae) WHERE {where}")
    (difference,) = row(database, f"SELECT difference FROM differences WHERE {where}")
    table = table_after(text, "toy · resid_post · topk", "L0")
    cells = re.findall(r"<td class=\"num v2\">(.*?)</td>", table, re.S)
    assert n == 4
    assert cells[1].startswith(f"{number(mean)}<small>{number(low)}–{number(high)}</small>")
    assert f"Δ {difference:.3f}".replace("-", "−") in cells[1]


def test_medians_are_over_the_latents_of_all_seeds(database: Path, text: str) -> None:
    where = "model = 'toy' AND name = 'pca' AND layer = 0 AND variant = 'control'"
    (median,) = row(database, f"SELECT median(detection_auroc) FROM latents JOIN saes USING (sae) WHERE {where}")
    table = table_after(text, "toy · resid_post · pca", "detection AUROC")
    assert f"{median:.3f}" in re.findall(r"<td class=\"num v2\">(.*?)</td>", table, re.S)[0]


def test_whether_a_number_can_tell_is_the_mean_over_seeds_with_its_ends(text: str) -> None:
    start = text.index("Can this number tell?")
    mean = fmean((20 + seed + 2 * draw) / 40 for seed in (0, 1) for draw in (0, 1))
    assert re.search(rf">{mean:.2f}</b> <small>0.50–0.57", text[start:])


def test_failures_are_counted_by_variant_with_their_reason(database: Path, text: str) -> None:
    part = text[text.index('id="failures"') : text.index('id="definitions"')]
    (n,) = row(
        database,
        "SELECT count(*) FROM explanations JOIN saes USING (sae) WHERE variant = 'control' AND status = 'failed'",
    )
    line = next(line for line in part.split("<tr>") if ">control</span>" in line and "explainer" in line)
    assert f"{n} × {FAILURE}" in line
    assert "scorer detection" in part


def test_a_study_with_almost_nothing_in_it_has_a_report(tmp_path: Path) -> None:
    for layers in ((), (0,)):
        write_small_study(tmp_path / "s.duckdb", layers=layers, latents=1, complete=False, scored=False)
        write_report(tmp_path / "s.duckdb", tmp_path / "s.html")
        assert "unfinished" in (tmp_path / "s.html").read_text(encoding="utf-8")


def test_what_cannot_be_read_or_written_is_said(database: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no study at"):
        write_report(tmp_path / "none.duckdb", tmp_path / "out.html")
    (tmp_path / "bad.duckdb").write_text("no database")
    with pytest.raises(UserError, match="not a DuckDB database"):
        write_report(tmp_path / "bad.duckdb", tmp_path / "out.html")
    with pytest.raises(UserError, match="Choose another file"):
        write_report(database, tmp_path / "missing" / "out.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        write_report(database, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.duckdb", "folder"]


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((0.0, 1.0), [0, 0.5, 1]),
        ((-1.0, 1.0), [-1, -0.5, 0, 0.5, 1]),
        ((3.0, 3.0), [3]),
        ((0.0, 37.0), [0, 10, 20, 30]),
    ],
)
def test_ticks_are_round_numbers_between_the_ends(ends: Range, ticks: list[float]) -> None:
    assert svg._round_numbers(*ends) == pytest.approx(ticks)


def test_a_curve_stands_where_its_numbers_say() -> None:
    metric = Metric("m", "sae", 0, "m", "", "", None, "log", None, None)
    points = [{"x": 0, "value": 0.01}, {"x": 4, "value": 1.0}, {"x": 2, "value": None}, {"x": 2, "value": 0.1}]
    drawn = svg.plot("", [Curve("a", "v0", points)], metric, (0.01, 1.0), "x", [0, 2, 4]).curves[0]
    (left, bottom), (middle, half), (right, top) = drawn.marks
    assert (left + right) / 2 == pytest.approx(middle)
    assert (bottom + top) / 2 == pytest.approx(half)
    assert top < bottom
