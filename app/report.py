"""A study as one HTML file that needs nothing else: its database comes in, a file for a paper's appendix goes out."""

from pathlib import Path
from typing import Any

from app import across, aggregates, queries, specifications, svg
from app.axes import settings
from app.charts import Curve, curve_of
from app.db import Database
from app.errors import PageError, ReportError
from app.render import STATIC, environment
from app.report_parts import Group, groups_of
from app.studies import Entry, Study

QUERY_SECONDS = 600.0
"""A query of the report that takes longer is stopped."""


def write_report(database: Path, out: Path) -> None:
    """Write the report of the study in `database` to `out`, whole or not at all.

    Raises ReportError when the study cannot be read or the file cannot be written.
    """
    text = _report(database)
    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ReportError(f"Cannot write '{out}': {error.strerror}. Choose another file with --out.") from error


def _report(database: Path) -> str:
    if not database.is_file():
        raise ReportError(f"There is no study at '{database}'. Give the .duckdb file that `lineup run` leaves.")
    opened = Database(QUERY_SECONDS)
    try:
        with opened.reading(database.absolute()) as reader:
            row = queries.study(reader)
            if row is None:
                raise ReportError(f"'{database}' holds no study: its table `study` is empty. Run the study again.")
            study = Study(Entry(database.stem, database, None), reader, row)
            return environment().get_template("report.html").render(**_context(study))
    except PageError as error:
        raise ReportError(f"{error.message} {error.advice}") from error
    finally:
        opened.close()


def _context(study: Study) -> dict[str, Any]:
    reader = study.reader
    groups = groups_of(study)
    return {
        "css": (STATIC / "app.css").read_text(encoding="utf-8"),
        "study": study,
        "models": queries.models(reader),
        "keys": [(variant, _key(curve_of(variant, []))) for variant in study.variants],
        "groups": groups,
        "axes": specifications.CHOICES,
        "across": _across(study, groups),
        "outcomes": aggregates.outcomes(reader),
        "metrics": [*study.metrics, *study.statistics],
        "provenance": queries.provenance(reader),
        "weights": aggregates.weights(reader),
        "timings": aggregates.timings(reader),
        "seconds": sum(row["seconds"] for row in aggregates.timings(reader)),
    }


def _key(curve: Curve) -> svg.Drawn:
    shape = svg.SHAPES[curve.mark.removesuffix("-open")]
    hollow = curve.mark.endswith("-open")
    return svg.Drawn(curve.label, curve.colour, svg.PATTERNS[curve.dash], "", shape, hollow, [], [])


def _across(study: Study, groups: list[Group]) -> list[tuple[str, list[tuple[across.Compared, svg.Plot]]]]:
    """For each hook and SAE that several models have: their plots by depth, at the first seeds."""
    found = []
    for setting in settings(study.all_saes):
        first = next((g for g in groups if (g.hook, g.name) == (setting.hook, setting.name)), None)
        if first is None or setting != first.setting:
            continue
        models = across.models_beside(study.at(setting))
        if len(models) > 1:
            plots = [(one, _depth_plot(one)) for one in across.compared(models)]
            found.append((f"{setting.hook} · {setting.name}", plots))
    return found


def _depth_plot(one: across.Compared) -> svg.Plot:
    metric = one.table.metric
    depths = [0, 0.25, 0.5, 0.75, 1]
    return svg.plot(f"{metric.label} by depth", one.curves, metric, one.table.span, "layer / layers", depths)
