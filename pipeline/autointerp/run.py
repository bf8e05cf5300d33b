"""Explains and scores all latents of an SAE without a model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy.typing import NDArray

from pipeline.autointerp import lexical
from pipeline.autointerp.examples import Protocol, Split, draw
from pipeline.autointerp.scorers import Scores, score
from pipeline.autointerp.tables import SCORERS, LexicalScorer
from pipeline.config import AutointerpConfig, Pool
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
    protocol: Protocol,
    config: AutointerpConfig,
    seed: int,
) -> tuple[pa.Table, pa.Table]:
    """The tables `explanations` (a row for every latent and pool that is explained from) and `scores` (a row for each
    scored latent, scorer, and pair of pools).

    The lexical explainer always works, because its rows also say which latents qualify and why the others do not.
    """
    split = draw(fired, where, corpus, protocol, seed)
    explanations, scores = [], [SCORES.empty_table()]
    for explain_from, shown in split.explain.items():
        lexicon = lexical.learn(shown, len(where.count), len(vocabulary))
        explanations.append(_explanations(explain_from, split, lexicon, vocabulary))
        scores += [
            scores_table(ScoreKey("lexical", explain_from, scorer.name, score_on), config, verdict)
            for scorer, score_on, verdict in lexical_scores(split, lexicon, config.scorers, seed)
        ]
    return pa.concat_tables(explanations), pa.concat_tables(scores)


def lexical_scores(
    split: Split, lexicon: lexical.Lexicon, scorers: Sequence[str], seed: int
) -> Iterator[tuple[LexicalScorer, Pool, Scores]]:
    """What the lexical ones among these scorers make of the rules, on each pool that is scored on."""
    for score_on, examples in split.score.items():
        probabilities = lexicon.probabilities(examples)
        for scorer in (SCORERS[name] for name in scorers):
            if isinstance(scorer, LexicalScorer):
                yield scorer, score_on, score(scorer.rate(examples, probabilities, derive_seed(seed, scorer.name)))


class ScoreKey(NamedTuple):
    """Which explanation is scored, and how."""

    explainer: str
    explain_from: Pool
    scorer: str
    score_on: Pool
    shuffled: bool = False
    """Whether it is another latent's: the floor of a score."""


SCORES = pa.schema(
    [("latent", pa.int64()), *((name, pa.string()) for name in ScoreKey._fields[:-1])]
    + [("shuffled", pa.bool_()), ("split_by", pa.string()), ("examples", pa.int32())]
    + [(name, pa.float64()) for name in ("auroc", "balanced_accuracy", "f1", "auprc")]
    + [("positives", pa.int64()), ("negatives", pa.int64()), ("status", pa.string()), ("reason", pa.string())]
)
"""Columns of the table `scores`, without the SAE."""


def scores_table(
    key: ScoreKey, config: AutointerpConfig, verdict: Scores, reasons: Sequence[str] | None = None
) -> pa.Table:
    """Rows of the table `scores` for latents that have one; `reasons` holds remarks on them."""
    count = len(verdict.latent)
    columns = {
        "latent": verdict.latent,
        **{name: [value] * count for name, value in key._asdict().items()},
        "split_by": [config.split_by] * count,
        "examples": [config.examples] * count,
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


def _explanations(explain_from: Pool, split: Split, lexicon: lexical.Lexicon, vocabulary: Sequence[str]) -> pa.Table:
    found = lexical.rules(lexicon)
    good = [reason == "" for reason in split.excluded]
    own = [found.get(latent, []) for latent in range(len(good))]
    return pa.table(
        {
            "latent": np.arange(len(good)),
            "explainer": ["lexical"] * len(good),
            "explain_from": [explain_from] * len(good),
            "text": pa.array([lexical.text(o, vocabulary) if g else None for o, g in zip(own, good, strict=True)]),
            "rules": pa.array([lexical.as_json(o) if g else None for o, g in zip(own, good, strict=True)]),
            "status": ["ok" if g else "not_applicable" for g in good],
            "reason": split.excluded.tolist(),
        }
    )
