"""All scores of a study on its overview: medians with their intervals over latents, and the means."""

from math import ceil, floor, sqrt
from pathlib import Path
from statistics import fmean, median

import duckdb
import numpy as np
import pytest
from small_study import write_small_study
from starlette.testclient import TestClient

from app.main import create_app
from app.pages.report import write_report
from app.settings import Settings
from app.study import queries
from app.study.files import Row
from app.study.study import Studies


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last SAE has no score by fuzzing, and no F1 by detection."""
    path = tmp_path_factory.mktemp("scores") / "small.duckdb"
    write_small_study(path)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            """UPDATE scores SET auroc = NULL, f1 = NULL, auprc = NULL, balanced_accuracy = NULL, status = 'failed'
               WHERE scorer = 'fuzzing' AND sae = (SELECT max(sae) FROM saes)"""
        )
        connection.execute("UPDATE scores SET f1 = 'NaN' WHERE sae = (SELECT max(sae) FROM saes)")
    return path


@pytest.fixture(scope="module")
def found(database: Path) -> dict[tuple[int, str], Row]:
    with Studies([database], query_seconds=10).open("small") as study:
        rows = queries.scores(study.reader, study.numbers)
        return {(study.places[row["variant"], row["layer"]][0].sae, row["scorer"]): row for row in rows}


def test_scores_are_summed_up_over_the_latents_of_each_sae(found: dict[tuple[int, str], Row], database: Path) -> None:
    with duckdb.connect(str(database), read_only=True) as connection:
        rows = connection.execute("SELECT auroc, f1, auprc FROM scores WHERE sae = 0 AND scorer = 'detection'")
        auroc, f1, auprc = zip(*rows.fetchall(), strict=True)
    row, ranked, n = found[0, "detection"], sorted(auroc), len(auroc)
    assert n > 20
    assert (row["asked"], row["latents"]) == (n, n)
    assert row["median"] == pytest.approx(median(auroc))
    for name, values in (("auroc", auroc), ("f1", f1), ("auprc", auprc)):
        assert row[name] == pytest.approx(fmean(values))
    assert row["low"] == ranked[floor((n - 1.96 * sqrt(n)) / 2) - 1]
    assert row["high"] == ranked[ceil(1 + (n + 1.96 * sqrt(n)) / 2) - 1]


def test_what_has_no_score_has_no_number(found: dict[tuple[int, str], Row]) -> None:
    last = max(sae for sae, _ in found)
    failed = found[last, "fuzzing"]
    assert failed["latents"] == 0 < failed["asked"]
    assert all(failed[name] is None for name in ("median", "low", "high", "auroc", "f1"))
    assert found[last, "detection"]["f1"] is None
    assert found[last, "detection"]["median"] is not None


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of a skewed distribution, from 40 latents: 300 draws as 300 SAEs. At least 95%, and not nearly all."""
    rng = np.random.default_rng(0)
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE saes (sae INTEGER, layer INTEGER, variant VARCHAR)")
        connection.execute("CREATE TABLE variants (variant VARCHAR, position INTEGER)")
        connection.execute("INSERT INTO variants VALUES ('v', 0)")
        connection.execute(
            "CREATE TABLE scores (sae INTEGER, explainer VARCHAR, scorer VARCHAR, explain_from VARCHAR,"
            " score_on VARCHAR, split_by VARCHAR, examples INTEGER, shuffled BOOLEAN,"
            " auroc DOUBLE, balanced_accuracy DOUBLE, f1 DOUBLE, auprc DOUBLE)"
        )
        values = [[sae, float(x)] for sae in range(300) for x in rng.exponential(size=40)]
        connection.execute("INSERT INTO saes SELECT range, range, 'v' FROM range(300)")
        connection.executemany(
            "INSERT INTO scores VALUES (?, 'e', 's', 'random', 'random', 'window', 40, false, ?, 0, 0, 0)", values
        )

        class Plain:
            def rows(self, sql: str, parameters: object) -> list[Row]:
                cursor = connection.execute(sql, parameters)
                names = [column[0] for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        rows = queries.scores(Plain(), range(300))  # type: ignore[arg-type]
    held = sum(row["low"] <= np.log(2) <= row["high"] for row in rows)
    assert 0.94 * 300 <= held < 300


def test_the_overview_shows_them_folded(database: Path) -> None:
    with TestClient(create_app(Settings(paths=(database,)))) as client:
        page = client.get("/s/small").text
    assert '<details id="all-scores">' in page
    assert "none has a score" in page
    assert "nan" not in page.partition('id="all-scores"')[2].partition("</details>")[0].lower().replace("nance", "")


# ---- the floor ----


@pytest.fixture(scope="module")
def floored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every latent's detection was also scored with another's explanation, half as well; the last SAE's failed."""
    path = tmp_path_factory.mktemp("floor") / "small.duckdb"
    write_small_study(path)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            """INSERT INTO scores SELECT * REPLACE (true AS shuffled, auroc / 2 AS auroc) FROM scores
               WHERE scorer = 'detection' AND sae < (SELECT max(sae) FROM saes)"""
        )
        connection.execute(
            """INSERT INTO scores SELECT * REPLACE (true AS shuffled, NULL AS auroc, 'failed' AS status, 'refused' AS
               reason) FROM scores WHERE scorer = 'detection' AND sae = (SELECT max(sae) FROM saes)"""
        )
    return path


def test_the_floor_stands_beside_the_score_and_in_no_other_number(
    floored: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = tmp_path_factory.mktemp("plain") / "small.duckdb"
    write_small_study(plain)
    with (
        Studies([plain], query_seconds=10).open("small") as before,
        Studies([floored], query_seconds=10).open("small") as after,
    ):
        without, found = (queries.scores(study.reader, study.numbers) for study in (before, after))
        last = list(after.places)[-1]
        failed = {row["what"]: row["failed"] for row in queries.outcomes(after.reader)}
    floors = ("floor", "floor_low", "floor_high")
    assert all(row[name] is None for row in without for name in floors)
    assert [{**row, **dict.fromkeys(floors)} for row in found] == without
    for row in found:
        halves = [row[name] / 2 for name in ("median", "low", "high")]
        expected = halves if row["scorer"] == "detection" and (row["variant"], row["layer"]) != last else [None] * 3
        assert [row[name] for name in floors] == (pytest.approx(expected) if expected[0] else expected)
    assert failed["detection, floor"] > 0 == failed["detection"]


def test_pages_and_the_report_show_the_floor_beside_the_score(floored: Path, database: Path, tmp_path: Path) -> None:
    with TestClient(create_app(Settings(paths=(floored,)))) as client:
        page = client.get("/s/small").text.partition('id="all-scores"')[2]
        latent = client.get("/s/small/latent/trained/1/4").text
    assert '<th scope="col" class="num">Floor</th>' in page
    assert latent.count(">floor</abbr>") == 1
    with TestClient(create_app(Settings(paths=(database,)))) as client:
        assert "Floor" not in client.get("/s/small").text
    write_report(floored, tmp_path / "report.html")
    assert '<th scope="col" class="num">Floor</th>' in (tmp_path / "report.html").read_text(encoding="utf-8")
