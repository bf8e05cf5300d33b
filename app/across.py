"""A study's models beside each other: from the study at one setting to tables and plots by relative depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app import aggregates, axes, charts, queries
from app.charts import Curve
from app.db import Row
from app.records import Metric
from app.studies import Study
from app.tables import Place, Places, Table, metric_table, places_of, statistic_table

ACROSS = ("token_entropy", "explained_variance", "ce_loss_recovered", "token_identity_r2")
"""What is compared across models, after the scores of contexts of one kind."""


@dataclass(frozen=True)
class Compared:
    """A metric of all models: a table with a line a model and layer, a curve for each model and variant."""

    table: Table
    curves: list[Curve]

    @property
    def figure(self) -> charts.Figure:
        """Its plot over the depth in the model."""
        x = {"title": charts.title("layer / layers"), "range": [-0.05, 1.05]}
        return charts.curves(self.table.metric, self.curves, self.table.span, x, height=230)


@dataclass(frozen=True)
class Model:
    """The study at one model, and how many layers that has."""

    name: str
    study: Study
    layers: int


def models_beside(study: Study) -> list[Model]:
    """The study at each model that has SAEs, all else as it is."""
    if study.setting is None:
        return []
    layers = {row["model"]: row["n_layers"] for row in queries.models(study.reader)}
    known, here = axes.settings(study.all_saes), study.setting
    names = dict.fromkeys(setting.model for setting in known if replace(here, model=setting.model) in known)
    return [Model(name, study.at(replace(here, model=name)), layers[name]) for name in names]


def compared(models: Sequence[Model]) -> list[Compared]:
    """The scores, and the metrics and statistics in ACROSS that the study has."""
    places: Places = []
    rows: dict[tuple[int, str], Row] = {}
    summaries: dict[int, Row] = {}
    for model in models:
        places += [_renamed(place, model) for place in places_of(model.study)]
        study = model.study
        rows |= {(row["sae"], row["metric"]): row for row in queries.sae_metrics(study.reader, study.numbers)}
        wanted = [metric.metric for metric in study.statistics if metric.one_pool or metric.metric in ACROSS]
        summaries |= aggregates.summaries(study.reader, study.numbers, wanted)
    found = []
    for metric in _metrics(models):
        of_saes = metric.level == "sae"
        table = metric_table(metric, places, rows) if of_saes else statistic_table(metric, places, summaries)
        if not table.empty:
            found.append(Compared(table, _curves(table, models)))
    return found


def _renamed(place: Place, model: Model) -> Place:
    head, title, layer, saes = place
    return f"{model.name} {head}", f"{model.name}, {title} of {model.layers}", layer, saes


def _metrics(models: Sequence[Model]) -> list[Metric]:
    known: Mapping[str, Metric] = {m.metric: m for one in models for m in (*one.study.metrics, *one.study.statistics)}
    scores = [metric for metric in known.values() if metric.one_pool]
    return [*scores, *(known[name] for name in ACROSS if name in known)]


def _curves(table: Table, models: Sequence[Model]) -> list[Curve]:
    """A line a model and variant: the variant's colour, the model's dash and mark."""
    found, start = [], 0
    for at, model in enumerate(models):
        lines = table.lines[start : start + len(model.study.layers)]
        start += len(lines)
        for variant, cells in Table(table.metric, lines).by_variant:
            points = [cell.point(line.layer / model.layers) for line, cell in zip(lines, cells, strict=True)]
            dash, mark = charts.DASHES[at % len(charts.DASHES)], charts.SYMBOLS[at % len(charts.SYMBOLS)]
            found.append(Curve(f"{model.name}, {variant.label}", variant.colour, points, dash, mark))
    return found
