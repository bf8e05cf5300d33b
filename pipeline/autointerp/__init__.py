"""Explains latents and scores the explanations: examples of a latent's activity come in, texts and scores go out.

`EXPLAINERS` and `SCORERS` are the tables; `explain_and_score` runs them over all latents of one SAE.
"""

from pipeline.autointerp.run import EXPLAINERS, SCORERS, explain_and_score

__all__ = ["EXPLAINERS", "SCORERS", "explain_and_score"]
