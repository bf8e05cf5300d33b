"""Do metrics of SAEs differ between trained and random beyond the seeds? Metrics come in, differences go out."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

FIELDS = [
    *((name, pa.string()) for name in ("model", "hook", "name", "variant")), ("layer", pa.int32()),
    ("metric", pa.string()), *((name, pa.float64()) for name in ("trained", "random", "difference", "low", "high")),
    ("trained_saes", pa.int32()), ("random_saes", pa.int32()), ("status", pa.string()), ("reason", pa.string()),
]  # fmt: skip

Place = tuple[Any, ...]
"""Model, hook, name, variant and layer: SAEs in one place differ in their seeds alone."""


def difference_table(
    saes: Sequence[Mapping[str, Any]], metrics: Mapping[str, Mapping[int, float]], level: float = 0.95
) -> pa.Table:
    """Table `differences`: for every metric, layer and random variant, random minus trained with its interval.

    `saes` have the columns of a place, the seeds and `is_trained`; `metrics` gives values by metric and SAE.
    """
    groups: dict[Place, list[Mapping[str, Any]]] = {}
    for sae in saes:
        groups.setdefault(tuple(sae[name] for name in ("model", "hook", "name", "variant", "layer")), []).append(sae)
    rows = []
    for place, group in groups.items():
        trained = [s for p, found in groups.items() for s in found if s["is_trained"] and _beside(p, place)]
        if trained and not group[0]["is_trained"]:
            head = dict(zip(("model", "hook", "name", "variant", "layer"), place, strict=True))
            rows += [head | {"metric": m} | _row(trained, group, values, level) for m, values in metrics.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema(FIELDS))


def _beside(one: Place, other: Place) -> bool:
    return (*one[:3], one[4]) == (*other[:3], other[4])


def _row(
    trained: Sequence[Mapping[str, Any]], random: Sequence[Mapping[str, Any]], values: Mapping[int, float], level: float
) -> dict[str, Any]:
    first, second = replicates(trained, values), replicates(random, values)
    counts = {f"{side}_saes": sum(s["sae"] in values for s in saes) for side, saes in _sides(trained, random)}
    if not (first and second):
        return counts | {"status": "not_applicable", "reason": "one side has no value"}
    means = {"trained": fmean(first), "random": fmean(second), "difference": fmean(second) - fmean(first)}
    if min(len(first), len(second)) < 2:
        return counts | means | {"status": "not_applicable", "reason": "one seed on a side: no interval"}
    low, high = welch_interval(first, second, level)
    return counts | means | {"low": low, "high": high, "status": "ok", "reason": ""}


def _sides(trained: Any, random: Any) -> tuple[tuple[str, Any], ...]:
    return ("trained", trained), ("random", random)


def replicates(saes: Sequence[Mapping[str, Any]], values: Mapping[int, float]) -> list[float]:
    """Independent values: where a variant was drawn several times the mean of each draw, else the value of each SAE.

    SAEs on one draw share its weights, so they are not independent replicates of the variant.
    """
    known = [sae for sae in saes if sae["sae"] in values]
    draws = sorted({sae["variant_seed"] for sae in known})
    if len(draws) > 1:
        return [fmean(values[sae["sae"]] for sae in known if sae["variant_seed"] == draw) for draw in draws]
    return [values[sae["sae"]] for sae in known]


def welch_interval(first: Sequence[float], second: Sequence[float], level: float) -> tuple[float, float]:
    """Interval of the mean of `second` minus that of `first`, unequal variances. Source: Welch 1947.

    Two equal constants give the interval of no width that they deserve.
    """
    sizes = np.array([len(first), len(second)])
    shares = np.array([np.var(first, ddof=1), np.var(second, ddof=1)]) / sizes
    middle = float(np.mean(second) - np.mean(first))
    if not shares.sum():
        return middle, middle
    freedom = shares.sum() ** 2 / (shares**2 / (sizes - 1)).sum()
    half = float(stats.t.ppf((1 + level) / 2, freedom) * shares.sum() ** 0.5)
    return middle - half, middle + half
