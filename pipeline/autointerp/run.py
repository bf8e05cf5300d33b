"""Explains and scores all latents of an SAE: firings come in, the tables `explanations` and `scores` go out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy.typing import NDArray

from pipeline.autointerp import lexical
from pipeline.autointerp.examples import Examples, Split, draw
from pipeline.autointerp.scorers import Rated, detection, fuzzing, score
from pipeline.collect import Firings, Windows
from pipeline.config import AutointerpConfig, CollectConfig
from pipeline.seeds import derive_seed


class Explainer(NamedTuple):
    """A way to explain: `name`, what it does, what it needs."""

    name: str
    description: str


class Scorer(NamedTuple):
    """A question put to an explanation about examples that the explainer has not seen."""

    name: str
    description: str
    rate: Callable[[Examples, NDArray[np.float64], int], Rated]
    examples: Callable[[Split], Examples]


EXPLAINERS: dict[str, Explainer] = {
    row.name: row
    for row in (
        Explainer(
            "lexical",
            "the tokens, and n-grams of up to three tokens, on which the latent fires: a back-off model learned from"
            " half of the examples; deterministic, needs no LLM",
        ),
    )
}

SCORERS: dict[str, Scorer] = {
    row.name: row
    for row in (
        Scorer(
            "detection", "does this context activate the latent? (strongest contexts)", detection, lambda s: s.strongest
        ),
        Scorer(
            "fuzzing",
            "are the marked tokens the ones that activate it? (strongest contexts)",
            fuzzing,
            lambda s: s.strongest,
        ),
        Scorer(
            "detection_quantiles",
            "detection on contexts of all strengths, from quantiles of the activation",
            detection,
            lambda s: s.quantiles,
        ),
        Scorer(
            "fuzzing_quantiles",
            "fuzzing on contexts of all strengths, from quantiles of the activation",
            fuzzing,
            lambda s: s.quantiles,
        ),
    )
}


def explain_and_score(
    fired: Firings,
    where: Windows,
    corpus: Int[NDArray[np.int32], " token"],
    vocabulary: Sequence[str],
    collect: CollectConfig,
    config: AutointerpConfig,
    seed: int,
) -> tuple[pa.Table, pa.Table]:
    """The tables `explanations` (a row for every latent) and `scores` (a row for each scored latent and scorer)."""
    split = draw(fired, where, corpus, collect, config, seed)
    lexicon = lexical.learn(split.explain, len(where.count), len(vocabulary))
    scores = [_scores(scorer, split, lexicon, seed) for scorer in SCORERS.values()]
    return _explanations(split, lexicon, vocabulary), pa.concat_tables(scores)


def _scores(scorer: Scorer, split: Split, lexicon: lexical.Lexicon, seed: int) -> pa.Table:
    examples = scorer.examples(split)
    verdict = score(scorer.rate(examples, lexicon.probabilities(examples), derive_seed(seed, scorer.name)))
    count = len(verdict.latent)
    return pa.table(
        {
            "latent": verdict.latent,
            "explainer": ["lexical"] * count,
            "scorer": [scorer.name] * count,
            "auroc": verdict.auroc,
            "balanced_accuracy": verdict.balanced_accuracy,
            "positives": verdict.positives,
            "negatives": verdict.negatives,
            "status": ["ok"] * count,
            "reason": [""] * count,
        }
    )


def _explanations(split: Split, lexicon: lexical.Lexicon, vocabulary: Sequence[str]) -> pa.Table:
    found = lexical.rules(lexicon)
    good = [reason == "" for reason in split.excluded]
    own = [found.get(latent, []) for latent in range(len(good))]
    return pa.table(
        {
            "latent": np.arange(len(good)),
            "explainer": ["lexical"] * len(good),
            "text": pa.array([lexical.text(o, vocabulary) if g else None for o, g in zip(own, good, strict=True)]),
            "rules": pa.array([lexical.as_json(o) if g else None for o, g in zip(own, good, strict=True)]),
            "status": ["ok" if g else "not_applicable" for g in good],
            "reason": split.excluded.tolist(),
        }
    )
