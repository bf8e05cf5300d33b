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

PLACE = ("model", "hook", "name", "layer")
"""Where an SAE stands: those of one variant in one place differ in their seeds alone."""

Place = tuple[Any, ...]


def difference_table(
    saes: Sequence[Mapping[str, Any]], metrics: Mapping[str, Mapping[int, float]], level: float = 0.95
) -> pa.Table:
    """Table `differences`: for every metric, layer and random variant, random minus trained with its interval.

    `saes` have the columns of a place, the seeds and `is_trained`; `metrics` gives values by metric and SAE.
    """
    trained: dict[Place, list[Mapping[str, Any]]] = {}
    random: dict[tuple[Place, str], list[Mapping[str, Any]]] = {}
    for sae in saes:
        place = tuple(sae[name] for name in PLACE)
        group = trained.setdefault(place, []) if sae["is_trained"] else random.setdefault((place, sae["variant"]), [])
        group.append(sae)
    rows = []
    for (place, variant), group in random.items():
        if place in trained:
            head = dict(zip(PLACE, place, strict=True)) | {"variant": variant}
            rows += [head | {"metric": m} | _row(trained[place], group, v, level) for m, v in metrics.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema(FIELDS))


def _row(
    trained: Sequence[Mapping[str, Any]], random: Sequence[Mapping[str, Any]], values: Mapping[int, float], level: float
) -> dict[str, Any]:
    first, second = replicates(trained, values), replicates(random, values)
    known = [sum(sae["sae"] in values for sae in saes) for saes in (trained, random)]
    counts = {"trained_saes": known[0], "random_saes": known[1]}
    if not (first and second):
        return counts | {"status": "not_applicable", "reason": "one side has no value"}
    means = {"trained": fmean(first), "random": fmean(second), "difference": fmean(second) - fmean(first)}
    if min(len(first), len(second)) < 2:
        return counts | means | {"status": "not_applicable", "reason": "one seed on a side: no interval"}
    low, high = welch_interval(first, second, level)
    return counts | means | {"low": low, "high": high, "status": "ok", "reason": ""}


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
