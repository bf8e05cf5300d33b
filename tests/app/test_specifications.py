"""Specification curves on pages and in the report: the counts, the words, and a mark for every protocol."""

from pathlib import Path

import duckdb
import pytest
from starlette.testclient import TestClient

from app.display.specifications import SpecificationCurve, curves_of
from app.main import create_app
from app.pages.report import write_report
from app.settings import Settings
from app.study.study import Studies
from tests.app.small_study import write_small_study


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curves") / "small.duckdb"
    write_small_study(path)
    return path


@pytest.fixture(scope="module")
def curves(database: Path) -> dict[tuple[str, int], SpecificationCurve]:
    with Studies([database], query_seconds=10).open("small") as study:
        return {(curve.variant.variant, curve.layer): curve for curve in curves_of(study)}


def test_there_is_a_curve_for_every_random_variant_and_layer(curves: dict) -> None:
    assert list(curves) == [(v, layer) for v in ("rerandomized_incl_embeddings", "control") for layer in (0, 1, 3)]
    for curve in curves.values():
        assert (len(curve.rows), curve.left_out, curve.p_values) == (16, 8, [0.001])
        assert [row["auroc"] for row in curve.rows] == sorted(row["auroc"] for row in curve.rows)


def test_a_verdict_that_the_protocol_makes_is_said_to_be_one(curves: dict) -> None:
    turns, holds = curves["control", 1], curves["control", 3]
    assert turns.sides == {"trained": 8, "random": 8}
    assert turns.verdict == "Who scores higher depends on the protocol."
    assert {(choice.axis, choice.value) for choice in turns.decisive} == {
        ("score_on", "strongest contexts"),
        ("score_on", "all strengths"),
    }
    medians = {choice.value: choice.median for choice in turns.decisive}
    assert medians["strongest contexts"] == pytest.approx(0.3, abs=0.02)
    assert medians["all strengths"] == pytest.approx(0.8, abs=0.02)
    assert holds.sides == {"trained": 16}
    assert holds.verdict == "Trained latents score higher under every protocol."


@pytest.mark.parametrize(
    ("sides", "verdict"),
    [
        ((0.3,) * 20, "Random latents score higher under every protocol."),
        ((0.7,) * 19 + (0.5,), "Trained latents score higher under nearly every protocol."),
        ((0.5,) * 4, "No difference can be seen under every protocol."),
        ((0.7, 0.5), "Trained latents score higher, or no difference can be seen: it depends on the protocol."),
        ((0.3, 0.5), "Random latents score higher, or no difference can be seen: it depends on the protocol."),
    ],
)
def test_verdicts_go_by_intervals(curves: dict, sides: tuple[float, ...], verdict: str) -> None:
    rows = [{"auroc": auroc, "low": auroc - 0.1, "high": auroc + 0.1} for auroc in sides]
    assert SpecificationCurve(curves["control", 1].variant, 0, rows, 0, []).verdict == verdict


def test_every_protocol_has_a_dot_an_interval_and_a_mark_for_each_choice(curves: dict) -> None:
    curve = curves["control", 1]
    figure = curve.figure
    assert sum(figure.points(side).count("M") for side in ("trained", "random", "cannot tell")) == 16
    assert figure.intervals.count("M") == 16
    assert [choice.axis for _, choice, _ in figure.marks] == [
        "explain_from", "explain_from", "score_on", "score_on", "split_by", "split_by", "examples", "examples",
    ]  # fmt: skip
    assert all(path.count("M") == len(choice.places) == 8 for _, choice, path in figure.marks)
    assert max(y for y, _, _ in figure.marks) < figure.height


def test_overview_page_and_report_show_them(database: Path, tmp_path: Path) -> None:
    with TestClient(create_app(Settings(paths=(database.parent,)))) as client:
        overview, page = client.get("/s/small"), client.get("/s/small/protocols")
    assert overview.text.count("Who scores higher depends on the protocol.") == 2
    assert overview.text.count("Trained latents score higher under every protocol.") == 4
    assert "/s/small/protocols" in overview.text
    assert page.text.count('class="spec"') == 6
    write_report(database, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count('class="spec"') == 6


def test_a_study_without_curves_says_why(tmp_path: Path) -> None:
    write_small_study(tmp_path / "small.duckdb")
    with duckdb.connect(str(tmp_path / "small.duckdb")) as connection:
        connection.execute("DELETE FROM specifications")
    with TestClient(create_app(Settings(paths=(tmp_path,)))) as client:
        assert "no specification curve" in client.get("/s/small/protocols").text
        assert "in how many protocols" not in client.get("/s/small").text
