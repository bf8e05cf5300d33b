"""Explains and scores all latents of an SAE without a model: firings come in, tables of texts and scores go out."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy.typing import NDArray

from pipeline.autointerp import lexical
from pipeline.autointerp.examples import Split, draw
from pipeline.autointerp.scorers import Scores, score
from pipeline.autointerp.tables import SCORERS, LexicalScorer
from pipeline.config import AutointerpConfig, CollectConfig
from pipeline.latents.collect import Firings, Windows, nullable
from pipeline.seeds import derive_seed


def part_seed(seed: int, first: int) -> int:
    """The seed of a part of an SAE's latents, `first` being its first: sampled latents are drawn again with it."""
    return derive_seed(seed, "autointerp", first)


def explain_and_score(
    fired: Firings,
    where: Windows,
    corpus: Int[NDArray[np.int32], " token"],
    vocabulary: Sequence[str],
    collect: CollectConfig,
    config: AutointerpConfig,
    seed: int,
) -> tuple[pa.Table, pa.Table]:
    """The tables `explanations` (a row for every latent) and `scores` (a row for each scored latent and scorer).

    The lexical explainer always works, because its rows also say which latents qualify and why the others do not.
    """
    split = draw(fired, where, corpus, collect, config, seed)
    lexicon = lexical.learn(split.explain, len(where.count), len(vocabulary))
    rows = [SCORERS[name] for name in config.scorers]
    scores = [_scores(row, split, lexicon, seed) for row in rows if isinstance(row, LexicalScorer)]
    return _explanations(split, lexicon, vocabulary), pa.concat_tables([SCORES.empty_table(), *scores])


def _scores(scorer: LexicalScorer, split: Split, lexicon: lexical.Lexicon, seed: int) -> pa.Table:
    examples = scorer.examples(split)
    verdict = score(scorer.rate(examples, lexicon.probabilities(examples), derive_seed(seed, scorer.name)))
    return scores_table("lexical", scorer.name, verdict)


SCORES = pa.schema(
    [("latent", pa.int64()), ("explainer", pa.string()), ("scorer", pa.string())]
    + [(name, pa.float64()) for name in ("auroc", "balanced_accuracy", "f1", "auprc")]
    + [("positives", pa.int64()), ("negatives", pa.int64()), ("status", pa.string()), ("reason", pa.string())]
)
"""Columns of the table `scores`, without the SAE."""


def scores_table(explainer: str, scorer: str, verdict: Scores, reasons: Sequence[str] | None = None) -> pa.Table:
    """Rows of the table `scores` for latents that have one; `reasons` holds remarks on them."""
    count = len(verdict.latent)
    columns = {
        "latent": verdict.latent,
        "explainer": [explainer] * count,
        "scorer": [scorer] * count,
        "auroc": nullable(verdict.auroc),
        "balanced_accuracy": nullable(verdict.balanced_accuracy),
        "f1": nullable(verdict.f1),
        "auprc": nullable(verdict.auprc),
        "positives": verdict.positives,
        "negatives": verdict.negatives,
        "status": ["ok"] * count,
        "reason": [""] * count if reasons is None else list(reasons),
    }
    return pa.table(columns, schema=SCORES)


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
