"""Trained against random: AUROCs of every statistic of latents, and differences of metrics over seeds."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from core.resampling import bootstrap_auroc, logistic_cv
from pipeline.progress import Advance
from pipeline.seeds import derive_seed

ALL = "logistic_regression"
"""Stands for all statistics together: an out-of-fold logistic regression on them."""
MATCH = "best_match_correlation"
REPLICATES = 200
"""Bootstrap replicates over latents."""
FOLDS = 5
DECADES = 0.1
"""Width of the bins of firing density within which trained and random latents are matched, in decades."""

PLACE = ("model", "hook", "name", "sae_seed", "layer")
"""Where an SAE stands: the trained one and every draw of a random variant stand there side by side."""

TELL_FIELDS = [
    ("trained_sae", pa.int32()), ("random_sae", pa.int32()), ("statistic", pa.string()), ("matched", pa.bool_()),
    ("auroc", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("trained", pa.int32()),
    ("random", pa.int32()), ("status", pa.string()), ("reason", pa.string()),
]  # fmt: skip

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Row = dict[str, Any]


def tell_table(
    saes: Sequence[Mapping[str, Any]],
    latents: Mapping[int, Mapping[str, Array]],
    matches: Mapping[tuple[int, int], Mapping[int, float]],
    statistics: Sequence[str],
    seed: int,
    advance: Advance | None = None,
) -> pa.Table:
    """Table `tells`: each random SAE against the trained one in the same place, every statistic, plain and matched.

    `saes` have `sae`, `is_trained` and the columns in `PLACE`; `latents` gives, by SAE, statistics of alive latents as
    [latents], among them their number `latent`. The best match of a latent is the one in the other SAE of its pair,
    out of `matches`: a maximum over more SAEs would be larger for that alone.
    """
    rows: list[Row] = []
    trained = {_place(sae): sae["sae"] for sae in saes if sae["is_trained"]}
    pairs = [(trained[_place(s)], s["sae"]) for s in saes if not s["is_trained"] and _place(s) in trained]
    for ours, theirs in pairs:
        own = derive_seed(seed, "tell", ours, theirs)
        one, other = (
            dict(latents[here]) | {MATCH: _of_pair(latents[here], matches.get((here, there), {}))}
            for here, there in ((ours, theirs), (theirs, ours))
        )
        for row in tell(one, other, statistics, own):
            rows.append({"trained_sae": ours, "random_sae": theirs} | row)
            if advance is not None:
                advance(len(rows), 2 * len(pairs) * (len(statistics) + 1))
    return pa.Table.from_pylist(rows, schema=pa.schema(TELL_FIELDS))


def _of_pair(latents: Mapping[str, Array], best: Mapping[int, float]) -> Array:
    return np.array([best.get(int(latent), np.nan) for latent in latents["latent"]])


def _place(sae: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sae[column] for column in PLACE)


def tell(
    trained: Mapping[str, Array], random: Mapping[str, Array], statistics: Sequence[str], seed: int
) -> Iterator[Row]:
    """AUROC of trained against random latents by each statistic and by all, with the bootstrap's 95% interval.

    An AUROC below one half says that random latents have larger values. Matched rows take equally many of both from
    each bin of firing density, drawn at random, so that density cannot tell them apart. Source: Mann & Whitney 1947.
    """
    rng = np.random.default_rng(seed)
    first = np.column_stack([trained[name] for name in statistics])
    second = np.column_stack([random[name] for name in statistics])
    for matched in (False, True):
        if matched:
            one, other = match_density(trained["density"], random["density"], rng)
            first, second = first[one], second[other]
        values = np.vstack([first, second])
        truth = np.arange(len(values)) < len(first)
        for column, name in enumerate(statistics):
            known = np.isfinite(values[:, column])
            yield {"statistic": name, "matched": matched} | _auroc(truth[known], values[known, column], rng)
        yield {"statistic": ALL, "matched": matched} | _together(truth, values, rng)


def match_density(trained: Array, random: Array, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Indices, ascending, of equally many latents of both, from each bin of log10 density as many as the smaller side
    has.
    """
    one, other = matched_pairs(trained, random, rng)
    return np.sort(one), np.sort(other)


def matched_pairs(trained: Array, random: Array, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """The same in pairs, drawn at random, that share a bin."""
    bins = [np.floor(np.log10(density) / DECADES) for density in (trained, random)]
    chosen: tuple[list[Indices], list[Indices]] = ([], [])
    for value in np.intersect1d(bins[0], bins[1]):
        members = [np.flatnonzero(found == value) for found in bins]
        size = min(map(len, members))
        for side, found in zip(chosen, members, strict=True):
            side.append(rng.permutation(found)[:size])
    none = np.empty(0, dtype=np.intp)
    return np.concatenate([none, *chosen[0]]), np.concatenate([none, *chosen[1]])


def _auroc(truth: NDArray[np.bool_], values: Array, rng: np.random.Generator) -> Row:
    counts = {"trained": int(truth.sum()), "random": int((~truth).sum())}
    if min(counts.values()) < FOLDS:
        return counts | _without(f"fewer than {FOLDS} latents of one side have a value")
    found = bootstrap_auroc(truth, values, rng=rng, replicates=REPLICATES)
    return counts | {"auroc": found.value, "low": found.low, "high": found.high, "status": "ok", "reason": ""}


def _together(truth: NDArray[np.bool_], values: Array, rng: np.random.Generator) -> Row:
    counts = {"trained": int(truth.sum()), "random": int((~truth).sum())}
    if min(counts.values()) < 2 * FOLDS:
        return counts | _without(f"fewer than {2 * FOLDS} latents of one side")
    finite = np.where(np.isfinite(values), values, np.nan)
    return _auroc(truth, logistic_cv(finite, truth, FOLDS, rng=rng), rng)


def _without(reason: str) -> Row:
    return {"auroc": None, "low": None, "high": None, "status": "not_applicable", "reason": reason}


DIFFERENCE_FIELDS = [
    *((name, pa.string()) for name in ("model", "hook", "name", "variant")), ("layer", pa.int32()),
    ("metric", pa.string()), *((name, pa.float64()) for name in ("trained", "random", "difference", "low", "high")),
    ("trained_saes", pa.int32()), ("random_saes", pa.int32()), ("status", pa.string()), ("reason", pa.string()),
]  # fmt: skip

WITHOUT_SEEDS = ("model", "hook", "name", "layer")
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
        place = tuple(sae[name] for name in WITHOUT_SEEDS)
        group = trained.setdefault(place, []) if sae["is_trained"] else random.setdefault((place, sae["variant"]), [])
        group.append(sae)
    rows = []
    for (place, variant), group in random.items():
        if place in trained:
            head = dict(zip(WITHOUT_SEEDS, place, strict=True)) | {"variant": variant}
            rows += [head | {"metric": m} | _difference(trained[place], group, v, level) for m, v in metrics.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema(DIFFERENCE_FIELDS))


def _difference(
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
