"""The log as rows, CSV and Parquet; the paragraph for a paper; the plots."""

import csv
import io
import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from blind_rows import double, experiment, items, of, single, ten

from app.blind import organiser
from app.blind.export import COLUMNS, label_rows, write_csv, write_parquet
from app.blind.method import method_paragraph
from app.blind.outcomes import Results
from app.blind.results import results
from app.blind.store import Logged

SCRIPT = "<script>alert(1)</script>"
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678900)


def logged(position: int, revision: int, event: str, answer: int | None = None, **changes: Any) -> Logged:
    values: dict[str, Any] = {"session": "secret-session", "pseudonym": "ada", "rater": "person", "kind": "main"}
    values |= {"practice_session": False}
    values |= {"truth": "trained", "left": 0, "right": None, "trial": "secret-trial", "reason": None}
    values |= {"seconds": 1.5, "hidden_seconds": 0.0, "written_at": WHEN}
    return Logged(position=position, revision=revision, event=event, answer=answer, **values | changes)  # type: ignore[arg-type]


LOG = [
    logged(0, 1, "label", 2),
    logged(0, 2, "undo", seconds=None, hidden_seconds=None),
    logged(0, 3, "label", 6),
    logged(1, 1, "skip", reason="=cmd()|'/C calc'!A0", pseudonym="+ada"),
    logged(2, 1, "label", 4, truth="random", left=3, kind="gold", seconds=-2.5),
    logged(3, 1, "label", 4),
    logged(3, 2, "undo"),
]


def test_a_row_an_event_with_the_latents_and_what_stands() -> None:
    rows = label_rows(experiment(tier=2), LOG, items(3))
    assert [tuple(row) for row in rows] == [tuple(COLUMNS)] * len(LOG)
    first = {"experiment": "abc", "study": "small", "form": "single", "tier": 2, "pseudonym": "ada", "position": 0}
    first |= {"pair": 0, "left_variant": "trained", "left_layer": 1, "left_latent": 100, "right_variant": None}
    first |= {"truth": "trained", "answer": 2, "correct": False, "seconds": 1.5, "written_at": WHEN, "stands": False}
    assert {name: rows[0][name] for name in first} == first
    assert [row["stands"] for row in rows] == [False, False, True, True, True, False, False]
    assert [row["correct"] for row in rows] == [False, None, True, None, False, True, None]
    assert (rows[4]["left_variant"], rows[4]["left_latent"], rows[4]["pair"]) == ("two", 103, 1)


def test_a_pair_has_both_latents() -> None:
    (row,) = label_rows(experiment(form="pair"), [logged(0, 1, "label", 6, truth="right", left=3, right=2)], items(3))
    assert (row["left_variant"], row["left_latent"], row["right_variant"], row["right_latent"]) == (
        "two",
        103,
        "trained",
        102,
    )
    assert row["correct"] is True


def test_tokens_that_give_rights_stay_inside() -> None:
    assert "secret" not in write_csv(label_rows(experiment(), LOG, items(3)))


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_of_nothing_is_its_header() -> None:
    assert write_csv([]) == ",".join(COLUMNS) + "\r\n"


def test_csv_holds_texts_that_no_spreadsheet_runs_and_numbers_as_they_are() -> None:
    rows = read_csv(write_csv(label_rows(experiment(), LOG, items(3))))
    assert rows[3]["reason"] == "'=cmd()|'/C calc'!A0"
    assert rows[3]["pseudonym"] == "'+ada"
    assert rows[4]["seconds"] == "-2.5"
    assert (rows[0]["correct"], rows[2]["stands"], rows[1]["answer"]) == ("false", "true", "")
    assert rows[0]["written_at"] == "2026-01-02T03:04:05.678900Z"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", " =", "\t ="])
def test_every_beginning_of_a_formula_is_disarmed(start: str) -> None:
    (row,) = read_csv(write_csv(label_rows(experiment(), [logged(0, 1, "skip", reason=f'{start}1,"2"\n3')], items(1))))
    assert row["reason"] == f'\'{start}1,"2"\n3'


@pytest.mark.parametrize("text", ["plain", "a=b", "1-2", '"quoted"', "é 東京", "'", ""])
def test_other_texts_stay_as_they_are(text: str) -> None:
    (row,) = read_csv(write_csv(label_rows(experiment(), [logged(0, 1, "skip", reason=text)], items(1))))
    assert row["reason"] == text


def test_parquet_reads_back_with_its_types(tmp_path: Path) -> None:
    path = tmp_path / "it's labels.parquet"
    rows = label_rows(experiment(), LOG, items(3))
    write_parquet(rows, path)
    with duckdb.connect() as connection:
        result = connection.execute("FROM read_parquet(?)", [str(path)])
        assert {column[0]: str(column[1]) for column in result.description or ()} == COLUMNS
        assert [dict(zip(COLUMNS, row, strict=True)) for row in result.fetchall()] == rows


def test_parquet_of_nothing_has_its_columns(tmp_path: Path) -> None:
    write_parquet([], tmp_path / "none.parquet")
    with duckdb.connect() as connection:
        result = connection.execute("FROM read_parquet(?)", [str(tmp_path / "none.parquet")])
        assert [column[0] for column in result.description or ()] == list(COLUMNS)
        assert result.fetchall() == []


def telling(pairs: int) -> list[dict[str, float | None]]:
    """Statistics of so many pairs: one that tells, one that does not."""
    return [{"telling": (item * 7 % 5) - 2.0 * (item % 2), "flat": 1.0} for item in range(2 * pairs)]


def rich(closed: bool = True, form: str = "single", **changes: Any) -> tuple[Any, Results]:
    """An experiment with something of everything: two raters, a repeat, one left out, one that left, a program."""
    made = experiment(closed, form=form, gold=0.2, trials=20, **changes)
    rows = []
    for name, wrong in (("ada", 3), ("bob", 5), ("out", 20), ("bot", 2)):
        for pair in range(12):
            for random in (0, 1) if form == "single" else (pair % 2,):
                right = pair >= wrong
                extra = {"seconds": 0.1} if name == "out" else {"rater": "program"} if name == "bot" else {}
                extra |= {"left_early": name in ("bob", "out")}
                if form == "single":
                    rows.append(single(name, 2 * pair + random, (1, 6)[(random == 0) == right], **extra))
                else:
                    truth = ("left", "right")[random]
                    rows.append(double(name, pair, truth, (1, 6)[(truth == "right") == right], **extra))
    again = {"kind": "repeat", "repeats": 0, "position": 99}
    rows.append(single("ada", 0, 1, **again) if form == "single" else double("ada", 0, "right", 6, **again))
    rows.append(single("ada", 77, None, event="skip", reason="other"))
    return made, results(made, rows, items(12, telling(12)))


@pytest.mark.parametrize("form", ["single", "pair"])
@pytest.mark.parametrize("closed", [True, False])
def test_the_paragraph_has_the_numbers_of_the_results_and_no_others(form: str, closed: bool) -> None:
    made, found = rich(closed, form)
    text = method_paragraph(made, found)
    overall, share = found.overall, found.overall.share
    assert overall.crossed.estimate
    assert overall.auroc.estimate
    assert found.logistic.auroc
    assert found.alpha_nominal.alpha is not None
    assert found.alpha_ordinal.alpha is not None
    assert overall.sensitivity.d_prime is not None
    crossed, area = overall.crossed.estimate, overall.auroc.estimate
    fixed = [f"{100 * end:.1f}%" for end in (share.wilson.low, share.wilson.high, overall.equivalence.interval.high)]
    fixed += ["Wilson 1927", f"p = {overall.equivalence.p_value:.3f}"]
    always = [
        f"{share.n} labels",
        f"{share.correct} of them right: {100 * (share.value or 0):.1f}%",
        f"{100 * share.anytime.low:.1f}% to {100 * share.anytime.high:.1f}%",
        f"{100 * crossed.low:.1f}% to {100 * crossed.high:.1f}%",
        f"d′ is {overall.sensitivity.d_prime:.3f}",
        f"{area.value:.3f} (95% interval {area.low:.3f} to {area.high:.3f})",
        f"{found.alpha_nominal.alpha:.3f} on the side",
        f"{found.alpha_ordinal.alpha:.3f} on the six answers",
        f"{found.same.count} of {found.same.n} answers",
        f"AUROC {found.logistic.auroc.value:.3f}",
        "“telling”",
        "3 people and 1 program labelled main trials",
        "1 of them was left out (1 for: median answer after 0.1 s, sooner than 1.5 s)",
        "1 left early; what they gave is kept.",
        "1 main trial was skipped",
        "12 matched pairs",
        "layers 1 and 3",
        "“one” and “two”",
        "The program “bot” had",
        "Software: Latent Lineup 0.1.0.",
    ]
    if overall.sensitivity.criterion is not None:
        assert overall.sensitivity.criterion == pytest.approx(0)
        always.append("the criterion 0.000")  # not −0.000
    assert [piece for piece in always if piece not in text] == []
    assert [piece for piece in fixed if (piece in text) != closed] == []
    assert ("interim" in text) != closed
    assert numbers(text) - allowed(made, found) == set()


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?", text))


def allowed(made: Any, found: Results) -> set[str]:
    """Every number of the design and the results as it may be written, the method's constants, years of sources."""
    design, leaves = made.design, list(flatten(json.loads(json.dumps(found, default=lambda record: vars(record)))))
    counts = vars(design.counts).values()
    written = {f"{value:.3f}" for value in leaves} | {f"{100 * value:.1f}" for value in leaves}
    written |= {str(value) for value in leaves if isinstance(value, int)}
    written |= {str(value) for value in [*counts, *design.layers, design.contexts, design.tier, design.min_seconds]}
    written |= {f"{100 * design.margin:.3g}", f"{100 * design.min_gold:.1f}"}
    written |= {"1", "2", "3", "4", "6", "8", "0.1", "10", "95", "90", "5", "0.001"}
    labelled = [rater for rater in found.raters if rater.labelled]
    written |= {str(sum(rater.kind == kind for rater in labelled)) for kind in ("person", "program")}
    return written | {"1927", "1934", "1987", "2007", "1995", "1966", "2011", "1970", "2021", "0.1.0", "0"}


def flatten(value: Any) -> Any:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from flatten(part)
    elif isinstance(value, int | float):
        yield abs(value)


def test_the_paragraph_is_word_for_word_what_it_was() -> None:
    """Decimals are left out: they are those of the results, and the last digit may be another processor's."""
    alone = experiment(gold=0, practice=0, repeats=0, layers=(1,), variants=("one",), min_gold=None, min_seconds=0)
    hostile = experiment(study=f"x\u202e{SCRIPT}\ny  z", variants=("<script>", " two  ", "a\nb & c"))
    elsewhere = experiment(True, study="small;model=x")
    elsewhere = replace(elsewhere, study={"name": "small", "setting": {"model": "x", "hook": "resid\npost"}})
    silent = [replace(row, answer=None, event=None) for row in ten("t")]
    cases: list[tuple[Any, Results]] = [
        rich(),
        rich(False, "pair", tier=3, practice=5, min_answered=0.5),
        rich(form="pair"),
        (experiment(), results(experiment(), [], [])),
        (experiment(True), of(ten(rater="program"))),
        (alone, results(alone, ten(left_early=True) + ten("bob", practice="again"), items(12))),
        (hostile, results(hostile, [], [])),
        (elsewhere, of(ten("p\u00a0q") + ten("s", seconds=0.1) + silent, min_answered=0.5)),
    ]
    texts = [re.sub(r"\d+\.\d+", "#", method_paragraph(*case)) for case in cases]
    assert texts == (Path(__file__).parent / "method_paragraphs.txt").read_text(encoding="utf-8").split("\n")[:-1]


def test_the_paragraph_of_an_empty_experiment_tells_the_design_alone() -> None:
    text = method_paragraph(experiment(), results(experiment(), [], []))
    assert "0 people and 0 programs labelled main trials. Software" in text
    assert "nan" not in text.lower()
    assert "None" not in text


def test_the_paragraph_tells_only_rules_that_can_apply() -> None:
    def rules(**changes: Any) -> str:
        return method_paragraph(experiment(**changes), of([], **changes))

    # ten trials have one gold trial at 5%, sixteen have three at 20%: the rule needs three
    assert "gold trials right" not in rules(min_seconds=0)
    assert "that raters who labelled none of the main trials are left out" in rules(min_seconds=0)
    assert "fewer than 5 of the main trials" in rules(min_answered=0.5)
    assert "fewer than 60.0% of at least 3 gold trials right" in rules(trials=16, gold=0.2)
    assert "gold trial" not in rules(gold=0)
    assert "practice trial" not in rules(practice=0)
    assert "not shown to lie within the margin" in method_paragraph(experiment(True), of(ten()))


def test_hostile_names_stay_text_and_lose_what_cannot_be_seen() -> None:
    made = experiment(study=f"x\u202e{SCRIPT}\ny", variants=(SCRIPT, "two"))
    text = method_paragraph(made, results(made, [], []))
    assert f"“x▯{SCRIPT}↵y”" in text
    assert "\n" not in text


def figures(found: Results) -> dict[str, organiser.Figure]:
    return dict(organiser.figures(found))


def test_there_is_nothing_to_draw_without_labels() -> None:
    assert organiser.figures(results(experiment(), [], [])) == []


def test_plots_draw_what_the_results_say() -> None:
    _, found = rich()
    drawn = figures(found)
    assert list(drawn) == ["ROC of the six answers", "Answers by truth"]
    (curve,) = drawn["ROC of the six answers"]["data"]
    assert list(zip(curve["x"], curve["y"], strict=True)) == [(p.false_alarms, p.hits) for p in found.overall.roc]
    bars = drawn["Answers by truth"]["data"]
    assert [(bar["name"], tuple(bar["y"])) for bar in bars] == [(a.truth, a.counts) for a in found.overall.answers]
    assert [bar["marker"]["color"] for bar in bars] == ["var(--v0)", "var(--v1)"]


def test_plots_are_json_that_app_js_can_colour_and_hold_no_markup_of_others() -> None:
    made = experiment(variants=(SCRIPT, "two"))
    found = results(made, [*ten(variant=SCRIPT), *ten("bob")], items(12))
    text = json.dumps(organiser.figures(found), allow_nan=False)
    assert "<script" not in text
    # app.js replaces var(--…) in values, not inside lists of texts
    assert not re.search(r"\[\"var\(--", text)
    assert 'style="' not in text
