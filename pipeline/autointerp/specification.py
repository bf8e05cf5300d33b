"""The specification curve: do scores tell trained from random latents, and does that depend on the protocol?

Source: Simonsohn, Simmons & Nelson 2020, "Specification curve analysis", Nature Human Behaviour 4.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats

from pipeline.autointerp import lexical
from pipeline.autointerp.examples import Protocol, draw
from pipeline.autointerp.run import lexical_scores
from pipeline.config import Pool, SplitBy, Study
from pipeline.latents.collect import Firings, Ints, windows
from pipeline.measures.comparisons import matched_pairs
from pipeline.progress import Advance
from pipeline.seeds import derive_seed, numpy_generator

FEWEST = 20
"""Latents of each side with a score, without which a protocol has no AUROC."""
RELABELLINGS = 999

Floats = NDArray[np.float64]


class Specification(NamedTuple):
    """A protocol: one point of the curve."""

    scorer: str
    explain_from: Pool
    score_on: Pool
    split_by: SplitBy
    examples: int
    window_tokens: int


SPECIFICATIONS = pa.schema(
    [(name, pa.string()) for name in Specification._fields[:4]]
    + [(name, pa.int32()) for name in Specification._fields[4:]]
    + [(name, pa.float64()) for name in ("auroc", "low", "high", "trained_median", "random_median")]
    + [("trained", pa.int32()), ("random", pa.int32()), ("status", pa.string()), ("reason", pa.string())]
)
CURVES = pa.schema(
    [("latents", pa.int32()), ("protocols", pa.int32()), ("median", pa.float64()), ("p_value", pa.float64())]
)


def curve(
    trained: Firings,
    random: Firings,
    corpus: Int[NDArray[np.int32], " token"],
    halves: Callable[[int], NDArray[np.bool_]],
    vocabulary: int,
    study: Study,
    seed: int,
    advance: Advance,
) -> tuple[pa.Table, pa.Table]:
    """Rows of `specifications`, and the one of `specification_curves`, for one trained and one random SAE.

    A sample of latents that qualify for the study's own scores is matched on density, and scored anew under every
    protocol; under one that asks for more contexts than a latent has, it has no score. `halves` splits the corpus'
    windows by document.
    """
    one, other = _sample(trained, random, corpus.size, study, seed)
    fired = _joined(_of(trained, one), _of(random, other))
    scores: dict[Specification, Floats] = {}
    settings = _settings(study)

    def work(setting: tuple[int, SplitBy, int]) -> dict[Specification, Floats]:
        return dict(_scored(fired, corpus, halves, vocabulary, study, setting, seed))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, found in enumerate(pool.map(work, settings), start=1):
            scores |= found
            advance(done * 2 * len(one), len(settings) * 2 * len(one))
    return summed_up(scores, len(one), seed)


def _settings(study: Study) -> list[tuple[int, SplitBy, int]]:
    """What examples are drawn for: tokens of a context, split, number."""
    splits = study.autointerp.specifications.split_by
    return list(itertools.product(study.curve_windows, splits, study.curve_examples))


def _sample(trained: Firings, random: Firings, tokens: int, study: Study, seed: int) -> tuple[Ints, Ints]:
    """Latents of both sides, in pairs of like density."""
    fewest, length = study.autointerp.min_contexts, study.collect.window
    qualify = [np.flatnonzero(windows(side, tokens, length).count >= fewest) for side in (trained, random)]
    densities = [side.count[own] / tokens for side, own in zip((trained, random), qualify, strict=True)]
    generator = numpy_generator(seed, "specifications", "sample")
    one, other = matched_pairs(densities[0], densities[1], generator)
    chosen = generator.permutation(len(one))[: study.autointerp.specifications.latents]
    return qualify[0][one[chosen]], qualify[1][other[chosen]]


def _of(fired: Firings, latents: Ints) -> Firings:
    """The firings of these latents, in their order."""
    sizes = fired.count[latents]
    start = np.concatenate([[0], np.cumsum(sizes)])
    rows = np.repeat(fired.start[latents] - start[:-1], sizes) + np.arange(start[-1])
    return Firings(start, np.repeat(np.arange(len(latents)), sizes), fired.token[rows], fired.value[rows])


def _joined(first: Firings, second: Firings) -> Firings:
    """The latents of one after those of the other."""
    return Firings(
        np.concatenate([first.start, first.start[-1] + second.start[1:]]),
        np.concatenate([first.latent, len(first.count) + second.latent]),
        np.concatenate([first.token, second.token]),
        np.concatenate([first.value, second.value]),
    )


def _scored(
    fired: Firings,
    corpus: Int[NDArray[np.int32], " token"],
    halves: Callable[[int], NDArray[np.bool_]],
    vocabulary: int,
    study: Study,
    setting: tuple[int, SplitBy, int],
    seed: int,
) -> Iterator[tuple[Specification, Floats]]:
    """AUROCs [latent] of all protocols that draw their examples in one way; nan where a latent does not qualify."""
    window, split_by, examples = setting
    config = study.autointerp
    protocol = Protocol(
        explain_from=config.specifications.explain_from,
        score_on=config.specifications.score_on,
        examples=examples,
        min_contexts=examples,
        quantiles=study.collect.quantiles,
        mark_threshold=config.mark_threshold,
        documents=halves(window) if split_by == "document" else None,
    )
    own = derive_seed(seed, "specifications", *setting)
    split = draw(fired, windows(fired, corpus.size, window), corpus, protocol, own)
    for explain_from, shown in split.explain.items():
        lexicon = lexical.learn(shown, len(fired.count), vocabulary)
        for scorer, score_on, verdict in lexical_scores(split, lexicon, config.scorers, own):
            found = np.full(len(fired.count), np.nan)
            found[verdict.latent] = verdict.auroc
            yield Specification(scorer.name, explain_from, score_on, split_by, examples, window), found


def summed_up(
    scores: dict[Specification, Float[Floats, " latent"]], pairs: int, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Both tables from the scores of so many trained latents and, after them, of as many random ones."""
    rows: list[dict[str, Any]] = []
    for specification, values in scores.items():
        ours, theirs = (side[~np.isnan(side)] for side in (values[:pairs], values[pairs:]))
        row: dict[str, Any] = specification._asdict() | {"trained": len(ours), "random": len(theirs)}
        if min(len(ours), len(theirs)) < FEWEST:
            reason = f"fewer than {FEWEST} sampled latents of one side qualify"
            rows.append(row | {"status": "not_applicable", "reason": reason})
            continue
        auroc, low, high = delong(ours, theirs)
        row |= {"trained_median": float(np.median(ours)), "random_median": float(np.median(theirs))}
        rows.append(row | {"auroc": auroc, "low": low, "high": high, "status": "ok", "reason": ""})
    there = [values for values, row in zip(scores.values(), rows, strict=True) if row["status"] == "ok"]
    whole: dict[str, Any] = {"latents": pairs, "protocols": len(there)}
    if there:
        whole["median"], whole["p_value"] = _median_test(np.stack(there), pairs, numpy_generator(seed, "relabelling"))
    return pa.Table.from_pylist(rows, schema=SPECIFICATIONS), pa.Table.from_pylist([whole], schema=CURVES)


def delong(ours: Floats, theirs: Floats) -> tuple[float, float, float]:
    """AUROC of ours against theirs, ties half, with its 95% interval over both. Source: DeLong et al. 1988.

    Where all of one side is above all of the other, the interval has no width, as a bootstrap's would have none.
    """
    both = stats.rankdata(np.concatenate([ours, theirs]))
    above = (both[: len(ours)] - stats.rankdata(ours)) / len(theirs)
    below = (both[len(ours) :] - stats.rankdata(theirs)) / len(ours)
    error = 1.96 * (np.var(above, ddof=1) / len(ours) + np.var(below, ddof=1) / len(theirs)) ** 0.5
    auroc = float(np.mean(above))
    return auroc, max(0.0, float(auroc - error)), min(1.0, float(auroc + error))


def _median_test(
    scores: Float[Floats, "protocol latent"], pairs: int, generator: np.random.Generator
) -> tuple[float, float]:
    """The median of the protocols' AUROCs, and how often one as far from 1/2 comes out where trained and random are
    swapped in pairs at random: a p-value, two-sided, the sample itself counted among the relabellings.
    """
    known = ~np.isnan(scores)
    ranks = np.where(known, stats.rankdata(scores, axis=1, nan_policy="omit"), 0)
    swapped = generator.random((RELABELLINGS, pairs)) < 0.5
    swapped = np.vstack([np.zeros((1, pairs), dtype=bool), swapped])
    ours = np.hstack([~swapped, swapped]).astype(float)
    count = ours @ known.T
    sums = ours @ ranks.T - count * (count + 1) / 2
    medians = np.median(sums / (count * (known.sum(axis=1) - count)), axis=1)
    far = np.abs(medians - 0.5) >= np.abs(medians[0] - 0.5) - 1e-12
    return float(medians[0]), float(np.mean(far))
