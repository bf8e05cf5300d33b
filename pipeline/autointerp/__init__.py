"""Explains latents by examples of their activity and scores the explanations.

`EXPLAINERS` and `SCORERS` are the tables. `explain_and_score` treats all latents of an SAE; what takes long or costs
money, `explain_and_score_sample` does for a sample of those that qualify.
"""

from pipeline.autointerp.client import Client, make_client
from pipeline.autointerp.embedding import Sentences
from pipeline.autointerp.examples import Protocol
from pipeline.autointerp.run import Tools, explain_and_score, explain_and_score_sample, part_seed
from pipeline.autointerp.specification import curve
from pipeline.autointerp.tables import (
    EXPLAINERS,
    SCORERS,
    check_scorers,
    has_curve,
    needs_llm,
    needs_sample,
    score_metrics,
)

__all__ = [
    "EXPLAINERS",
    "SCORERS",
    "Client",
    "Protocol",
    "Sentences",
    "Tools",
    "check_scorers",
    "curve",
    "explain_and_score",
    "explain_and_score_sample",
    "has_curve",
    "make_client",
    "needs_llm",
    "needs_sample",
    "part_seed",
    "score_metrics",
]
