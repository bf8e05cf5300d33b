"""Variants that differ in one number, models beside each other, differences over seeds: their tables and plots."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from small_study import SECOND, Shape, write_small_study
from starlette.testclient import TestClient

from app.display.charts import symbol
from app.display.comparisons import sweeps
from app.main import create_app
from app.settings import Settings
from app.study.records import Variant

NAMES = ("trained", "control", "scale:4", "scale:0.25", "scale:1", "distribution:uniform", "gain:1", "gain:2")
SHAPE = Shape({"toy": (0, 1), SECOND: (0, 3)}, variants=("trained", "control"), variant_seeds=2, sae_seeds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sweeps")
    write_small_study(made / "sweep.duckdb", latents=20, shape=Shape({"toy": (0, 3)}, variants=NAMES), top_contexts=1)
    write_small_study(made / "models.duckdb", latents=20, shape=SHAPE, top_contexts=1)
    return made


@pytest.fixture(scope="module")
def wide(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(paths=(folder,)))) as opened:
        yield opened


def variant(name: str) -> Variant:
    return Variant(name, 0, name, "", name == "trained", 0)


def test_three_numbers_of_one_prefix_are_a_sweep_in_their_order() -> None:
    found = sweeps([variant(name) for name in NAMES])
    assert [(one.prefix, [value for value, _ in one.variants], one.log) for one in found] == [
        ("scale", [0.25, 1.0, 4.0], True)
    ]
    assert not sweeps([variant(name) for name in ("scale:0", "scale:1", "scale:nan", "scale:", ":2", "2")])
    assert [one.log for one in sweeps([variant(f"scale:{value}") for value in (0, 1, 2)])] == [False]


def test_the_plots_show_a_sweep_with_a_line_a_layer_beside_the_trained_value(wide: TestClient) -> None:
    context = wide.get("/s/sweep/plots?metric=density").context
    ((sweep, figures),) = context["sweeps"]
    assert sweep.prefix == "scale"
    named = {metric.metric: figure for metric, figure in figures}
    assert {"density", "explained_variance", "l0"} <= set(named)
    assert "ce_loss_recovered" not in named  # no random variant has one
    assert "fuzzing_auroc" not in named  # of the statistics, the chosen one
    figure = named["explained_variance"]
    tables = {table.metric.metric: table for table in wide.get("/s/sweep").context["tables"]}
    for line, (swept, trained) in zip(
        tables["explained_variance"].lines, zip(figure["data"][::2], figure["data"][1::2], strict=True), strict=True
    ):
        values = {cell.variant.variant: cell.value for cell in line.cells}
        assert swept["x"] == [0.25, 1.0, 4.0]
        assert swept["y"] == [values["scale:0.25"], values["scale:1"], values["scale:4"]]
        assert (trained["x"], trained["y"]) == ([0.25, 4.0], [values["trained"]] * 2)
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert wide.get("/s/models/plots").context["sweeps"] == []


def test_many_variants_are_rows(wide: TestClient) -> None:
    text = wide.get("/s/sweep").text
    assert text.count('class="by-variant"') >= 8 * 10
    assert 'class="by-variant"' not in wide.get("/s/models").text


def test_marks_differ_where_colours_come_round() -> None:
    variants = [Variant(str(at), at, "", "", False, 0) for at in range(24)]
    assert len({(v.colour, v.round) for v in variants}) == len({(v.colour, symbol(v)) for v in variants}) == 24


def test_models_stand_beside_each_other_with_their_own_numbers(wide: TestClient) -> None:
    shown = {one.table.metric.metric: one for one in wide.get("/s/models?sae_seed=1").context["across"]}
    assert list(shown)[:2] == ["detection_auroc", "fuzzing_auroc"]
    heads = [line.head for line in shown["explained_variance"].table.lines]
    assert heads == ["toy L0", "toy L1", f"{SECOND} L0", f"{SECOND} L3"]
    for model, lines in (("toy", slice(0, 2)), (SECOND, slice(2, 4))):
        own = wide.get("/s/models", params={"model": model, "sae_seed": 1}).context
        for name, tables in (("explained_variance", own["tables"]), ("detection_auroc", own["scores"])):
            table = next(table for table in tables if table.metric.metric == name)
            mine = [[cell.value for cell in line.cells] for line in shown[name].table.lines[lines]]
            assert mine == [[cell.value for cell in line.cells] for line in table.lines]
    curves = {curve.label: [point["x"] for point in curve.known] for curve in shown["explained_variance"].curves}
    assert curves[f"{SECOND}, control"] == [0.0, 0.75]
    assert wide.get("/s/sweep").context["across"] == []


def test_differences_are_shown_with_their_intervals(wide: TestClient, folder: Path) -> None:
    page = wide.get("/s/models")
    table = next(table for table in page.context["tables"] if table.metric.metric == "l0")
    trained, control = table.lines[1].cells
    assert trained.difference is None
    with duckdb.connect(str(folder / "models.duckdb"), read_only=True) as connection:
        found = connection.execute(
            "SELECT difference, low, high, random_saes FROM differences"
            " WHERE model = 'toy' AND layer = 1 AND metric = 'l0'"
        ).fetchall()
    assert [tuple(control.difference[key] for key in ("difference", "low", "high", "random_saes"))] == found
    assert found[0][3] == 4
    assert "4 random and 2 trained SAEs" in page.text


def test_with_one_seed_the_reason_is_in_a_tooltip_and_nothing_else(wide: TestClient) -> None:
    text = wide.get("/s/sweep").text
    assert 'title="One seed on a side: no interval."' in text
    assert "Δ" not in text
