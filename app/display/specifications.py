"""Specification curves: how many protocols call a latent trained or random, in words and as a figure."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from app.study import queries
from app.study.files import Row
from app.study.records import POOLS, Variant
from app.study.study import Study

CHOICES = {
    "scorer": "Scorer",
    "explain_from": "Explained from",
    "score_on": "Scored on",
    "split_by": "Split by",
    "examples": "Contexts",
    "window_tokens": "Tokens a context",
}
"""Columns of `specifications` that make a protocol, and what pages call them."""
ORDER = {pool: place for place, pool in enumerate(POOLS)}
NEARLY_ALL = 0.95
"""Share of protocols from which on a verdict is said without a but."""


@dataclass(frozen=True)
class Choice:
    """One value of one choice: the median AUROC of the protocols that make it, and their places along the curve."""

    axis: str
    value: str
    median: float
    places: list[int]


@dataclass(frozen=True)
class SpecificationCurve:
    """Trained against one random variant at one layer, under every protocol; over all seeds where there are several."""

    variant: Variant
    layer: int
    rows: list[Row]
    """Those with an AUROC, the smallest first."""
    left_out: int
    """Protocols for which too few latents qualify."""
    p_values: list[float]
    """By pair of SAEs, of the median."""

    @cached_property
    def sides(self) -> Counter[str]:
        """How many protocols say that trained latents score higher, or random ones, or that they cannot tell."""
        return Counter(_side(row) for row in self.rows)

    @property
    def median(self) -> float:
        """Of the AUROCs."""
        return float(median(row["auroc"] for row in self.rows))

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest."""
        return self.rows[0]["auroc"], self.rows[-1]["auroc"]

    @property
    def verdict(self) -> str:
        """What a reader may conclude, in words."""
        total = len(self.rows)
        for side, words in (
            ("trained", "Trained latents score higher"),
            ("random", "Random latents score higher"),
            ("cannot tell", "No difference can be seen"),
        ):
            if self.sides[side] == total:
                return f"{words} under every protocol."
            if self.sides[side] >= NEARLY_ALL * total:
                return f"{words} under nearly every protocol."
        if not (self.sides["trained"] and self.sides["random"]):
            side = "Trained" if self.sides["trained"] else "Random"
            return f"{side} latents score higher, or no difference can be seen: it depends on the protocol."
        return "Who scores higher depends on the protocol."

    @cached_property
    def choices(self) -> list[Choice]:
        """Every value of every choice that was varied."""
        found = []
        for axis in CHOICES:
            values = sorted({row[axis] for row in self.rows}, key=lambda value: (ORDER.get(value, 9), value))
            for value in values if len(values) > 1 else ():
                places = [at for at, row in enumerate(self.rows) if row[axis] == value]
                middle = median(self.rows[at]["auroc"] for at in places)
                found.append(Choice(axis, POOLS.get(value, str(value)), middle, places))
        return found

    @property
    def decisive(self) -> list[Choice]:
        """The values of the choice that moves the AUROC most."""
        by_axis: dict[str, list[Choice]] = {}
        for choice in self.choices:
            by_axis.setdefault(choice.axis, []).append(choice)
        return max(by_axis.values(), key=_spread, default=[])

    @cached_property
    def figure(self) -> "Figure":
        """The curve as a drawing."""
        return Figure(self)


class Figure:
    """Where everything of a drawn curve stands, in a box of `width` by `height`."""

    left, right, top, width = 200.0, 14.0, 10.0, 1010.0
    plot, line = 190.0, 15.0

    def __init__(self, curve: SpecificationCurve) -> None:
        self.curve = curve
        self.height = self.top + self.plot + 16 + self.line * len(curve.choices) + 8
        self._step = (self.width - self.left - self.right) / max(len(curve.rows), 1)

    def x(self, place: int) -> float:
        """Of a protocol, by its place along the curve."""
        return self.left + self._step * (place + 0.5)

    def y(self, auroc: float) -> float:
        """Of an AUROC."""
        return self.top + self.plot * (1 - auroc)

    @property
    def intervals(self) -> str:
        """A path with a stroke for the interval of every protocol."""
        return "".join(
            f"M{self.x(at):.1f} {self.y(row['low']):.1f}V{self.y(row['high']):.1f}"
            for at, row in enumerate(self.curve.rows)
        )

    def points(self, side: str) -> str:
        """A path with a dot for every protocol that says so."""
        places = [at for at, row in enumerate(self.curve.rows) if _side(row) == side]
        return "".join(f"M{self.x(at):.1f} {self.y(self.curve.rows[at]['auroc']):.1f}h0" for at in places)

    @property
    def marks(self) -> list[tuple[float, Choice, str]]:
        """By choice, the height of its line and a path with a stroke for every protocol that makes it."""
        found = []
        for number, choice in enumerate(self.curve.choices):
            y = self.top + self.plot + 16 + self.line * number
            found.append((y + 9, choice, "".join(f"M{self.x(at):.1f} {y + 1:.1f}v10" for at in choice.places)))
        return found


def curves_of(study: Study) -> list[SpecificationCurve]:
    """The curves of the random SAEs that are shown, by variant and layer; those without any AUROC are left out."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in queries.specifications(study.reader, study.numbers):
        found.setdefault((row["variant"], row["layer"]), []).append(row)
    p_values: dict[tuple[str, int], list[float]] = {}
    for row in queries.specification_curves(study.reader, study.numbers):
        if row["p_value"] is not None:
            p_values.setdefault((row["variant"], row["layer"]), []).append(row["p_value"])
    curves = []
    for (variant, layer), rows in found.items():
        known = [row for row in rows if row["status"] == "ok"]
        place = (variant, layer)
        if known:
            left_out = len(rows) - len(known)
            curves.append(SpecificationCurve(study.variant(variant), layer, known, left_out, p_values.get(place, [])))
    return curves


def _side(row: Row) -> str:
    if row["low"] > 0.5:
        return "trained"
    return "random" if row["high"] < 0.5 else "cannot tell"


def _spread(choices: list[Choice]) -> float:
    medians = [choice.median for choice in choices]
    return max(medians) - min(medians)
