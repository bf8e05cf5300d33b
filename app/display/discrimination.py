"""Can this number tell trained from random latents? Tables of the AUROCs in `tells`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from app.display import contexts
from app.study import queries
from app.study.files import Row
from app.study.records import Metric, Variant
from app.study.study import Study

AUROC = Metric(
    metric="auroc", level="latent", position=0, label="AUROC", unit="", description="", higher_is_better=None,
    scale="linear", lower=0.0, upper=1.0,
)  # fmt: skip
"""What a plot of `tells` has on its upright axis."""
ALL_TOGETHER = "logistic_regression"
"""The statistic of `tells` that is all of them at once."""
FEW = 3
"""Random variants that are shown one by one; more of them share a heatmap."""
MOST_COLUMNS = 24
"""Columns of a heatmap over all layers, unless its first statistic has more."""
FIRST = (ALL_TOGETHER, "token_entropy", "top_token_share", "best_match_correlation", "max_activation")
"""Statistics of a heatmap that come first, after the scores; the others follow in the study's order."""
MATCHED_ON = ("density", "firings")
"""Statistics that matching makes equal; a heatmap leaves them out."""


@dataclass(frozen=True)
class Telling:
    """A statistic against one random variant: by layer, the rows of `tells`, plain and matched on firing density."""

    name: str
    label: str
    metric: Metric | None
    layers: dict[int, dict[bool, Row]]

    @property
    def distance(self) -> float:
        """How far its matched AUROC comes from one half at any layer."""
        found = [rows[True]["auroc"] for rows in self.layers.values() if True in rows]
        return max((abs(auroc - 0.5) for auroc in found if auroc is not None), default=0.0)

    @property
    def points(self) -> list[Row]:
        """Of a line over layers: the matched AUROCs with their intervals."""
        found = [(layer, rows[True]) for layer, rows in self.layers.items() if True in rows]
        return [{"x": layer, "value": row["auroc"], "low": row["low"], "high": row["high"]} for layer, row in found]

    def seen(self, layer: int) -> "Seen":
        """What it sees at a layer."""
        rows = self.layers.get(layer, {})
        return Seen(rows.get(True), rows.get(False))


Tellings = list[tuple[Variant, list[Telling]]]
"""By random variant, all statistics."""


@dataclass(frozen=True)
class Seen:
    """A cell of a heatmap: the rows of `tells` of one statistic, variant and layer, matched on density and plain."""

    matched: Row | None = None
    plain: Row | None = None

    @property
    def auroc(self) -> float | None:
        """The matched AUROC."""
        return self.matched["auroc"] if self.matched else None

    @property
    def side(self) -> str:
        """On which side of one half the whole interval lies, `above` or `below`; `holds` where it holds one half."""
        if self.matched is None or self.auroc is None:
            return "none"
        return "above" if self.matched["low"] > 0.5 else "below" if self.matched["high"] < 0.5 else "holds"

    @property
    def shade(self) -> int:
        """Its shade, 0 to `contexts.LEVELS`: how far it is from one half, where it can tell."""
        told = self.side in ("above", "below")
        return contexts.shade(abs((self.auroc or 0.0) - 0.5), 0.5) if told else 0


@dataclass(frozen=True)
class Heatmap:
    """Which numbers can tell, against which random variant: for each statistic a column a layer."""

    layers: list[int]
    statistics: list[Telling]
    rows: list[tuple[Variant, list[list[Seen]]]]
    left_out: int = 0
    """Statistics that did not fit."""

    @property
    def counts(self) -> list[list[Counter[str]]]:
        """By statistic and layer, how many variants are on which side of one half."""
        columns = zip(*(groups for _, groups in self.rows), strict=True)
        return [[Counter(seen.side for seen in cells) for cells in zip(*column, strict=True)] for column in columns]


def tellings(study: Study) -> Tellings:
    """By random variant, all statistics together first, then those that tell best."""
    metrics = {metric.metric: metric for metric in study.statistics}
    found: dict[str, dict[str, Telling]] = {}
    for row in queries.tells(study.reader, study.numbers):
        name = row["statistic"]
        metric = metrics.get(name)
        label = metric.label if metric else "all together, logistic regression"
        telling = found.setdefault(row["variant"], {}).setdefault(name, Telling(name, label, metric, {}))
        telling.layers.setdefault(row["layer"], {})[row["matched"]] = row
    return [(study.variant(variant), sorted(own.values(), key=_strength)) for variant, own in found.items()]


def _strength(telling: Telling) -> tuple[bool, float, int]:
    return telling.metric is not None, -telling.distance, telling.metric.position if telling.metric else 0


def heatmap(found: Tellings, layers: Sequence[int], most: int | None = None) -> Heatmap | None:
    """The heatmap of many variants at some layers; None for few of them. It has `most` columns, if one group fits."""
    if len(found) <= FEW:
        return None
    by_name = [(variant, {telling.name: telling for telling in own}) for variant, own in found]
    worth = _worth(list({name: telling for _, own in by_name for name, telling in own.items()}.values()))
    fit = worth if most is None else worth[: max(1, most // max(1, len(layers)))]
    rows = [
        (variant, [[own[t.name].seen(layer) if t.name in own else Seen() for layer in layers] for t in fit])
        for variant, own in by_name
    ]
    return Heatmap(list(layers), fit, rows, len(worth) - len(fit))


def _worth(known: Sequence[Telling]) -> list[Telling]:
    """Statistics worth a column, the first ones first."""
    return sorted((telling for telling in known if telling.name not in MATCHED_ON), key=_rank)


def _rank(telling: Telling) -> tuple[int, int]:
    if telling.metric and telling.metric.one_pool:
        return -1, telling.metric.position
    first = FIRST.index(telling.name) if telling.name in FIRST else len(FIRST)
    return first, telling.metric.position if telling.metric else 0
