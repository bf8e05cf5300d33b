"""The tables `EXPLAINERS` and `SCORERS`: what a study file may name comes in, the functions behind it go out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.autointerp import prompts
from pipeline.autointerp.embedding import model_folder
from pipeline.autointerp.examples import Examples, Split
from pipeline.autointerp.questions import Asked, ask_detection, ask_fuzzing, ask_fuzzing_hard
from pipeline.autointerp.scorers import Rated, detection, fuzzing
from pipeline.config import AutointerpConfig
from pipeline.errors import LineupError

Kind: TypeAlias = Literal["lexical", "embedding", "llm"]
"""What does the work. `lexical` is fast and treats all latents; the others treat a sample of `autointerp.latents`."""


@dataclass(frozen=True)
class Explainer:
    """A way to explain."""

    name: str
    description: str
    kind: Kind


@dataclass(frozen=True)
class Scorer:
    """A question put to an explanation about examples that the explainer has not seen."""

    name: str
    description: str
    kind: Kind
    examples: Callable[[Split], Examples]


@dataclass(frozen=True)
class LexicalScorer(Scorer):
    """One that a rule answers: from examples, the probability that the explanation gives to each token, and a seed."""

    rate: Callable[[Examples, NDArray[np.float64], int], Rated]


@dataclass(frozen=True)
class LlmScorer(Scorer):
    """One that a language model answers: what it is shown, made from examples and a seed, and what it is asked."""

    ask: Callable[[Examples, int], Asked]
    question: str


def strongest(split: Split) -> Examples:
    """The half of the strongest contexts that the explainer has not seen."""
    return split.strongest


def quantiles(split: Split) -> Examples:
    """Contexts of all strengths."""
    return split.quantiles


EXPLAINERS: dict[str, Explainer] = {
    row.name: row
    for row in (
        Explainer(
            "lexical",
            "the tokens, and n-grams of up to three tokens, on which the latent fires: a back-off model learned from"
            " half of the examples; deterministic, needs no LLM",
            "lexical",
        ),
        Explainer(
            "llm",
            "a sentence by a language model that is shown the same half, with marks and levels; of a sample of latents",
            "llm",
        ),
    )
}

SCORERS: dict[str, Scorer] = {
    row.name: row
    for row in (
        LexicalScorer(
            "detection",
            "does this context activate the latent? (strongest contexts)",
            "lexical",
            strongest,
            detection,
        ),
        LexicalScorer(
            "fuzzing",
            "are the marked tokens the ones that activate it? (strongest contexts)",
            "lexical",
            strongest,
            fuzzing,
        ),
        LexicalScorer(
            "detection_quantiles",
            "detection on contexts of all strengths, from quantiles of the activation",
            "lexical",
            quantiles,
            detection,
        ),
        LexicalScorer(
            "fuzzing_quantiles",
            "fuzzing on contexts of all strengths, from quantiles of the activation",
            "lexical",
            quantiles,
            fuzzing,
        ),
        Scorer(
            "embedding",
            "cosine of the explanation's sentence embedding with that of each context, of all strengths and silent;"
            " a cosine has no threshold of its own: AUROC and AUPRC only",
            "embedding",
            quantiles,
        ),
        LlmScorer(
            "llm_detection",
            "a language model is given the explanation: does this context, of any strength, activate the latent?",
            "llm",
            quantiles,
            ask_detection,
            prompts.DETECTION,
        ),
        LlmScorer(
            "llm_fuzzing",
            "a language model is given the explanation: are the marked tokens the ones that activate the latent?"
            " Silent contexts bear random marks",
            "llm",
            quantiles,
            ask_fuzzing,
            prompts.FUZZING,
        ),
        LlmScorer(
            "llm_fuzzing_hard",
            "the same among activating contexts alone: right tokens marked against wrong ones",
            "llm",
            quantiles,
            ask_fuzzing_hard,
            prompts.FUZZING,
        ),
    )
}


def check_scorers(config: AutointerpConfig) -> None:
    """Raise LineupError for scorers that do not exist, twice the same, and those that lack what they need."""
    for name in config.scorers:
        if name not in SCORERS:
            raise LineupError(f"Unknown scorer '{name}' in autointerp.scorers; known: {', '.join(SCORERS)}.")
    for what, names in (("explainers", config.explainers), ("scorers", config.scorers)):
        if len(set(names)) != len(names) or (what == "explainers" and not names):
            raise LineupError(f"autointerp.{what} {list(names)} must name one or more, none of them twice.")
    kinds = {SCORERS[name].kind for name in config.scorers}
    if "lexical" in kinds and "lexical" not in config.explainers:
        raise LineupError(
            "Scorers of kind lexical (such as detection) rate the rules of the explainer lexical: add it to"
            " autointerp.explainers, or leave them out of autointerp.scorers."
        )
    if "embedding" in kinds:
        model_folder()
    if needs_llm(config):
        _check_llm(config)


def _check_llm(config: AutointerpConfig) -> None:
    llm = config.llm
    if not llm.model or not llm.endpoint.startswith(("http://", "https://")):
        raise LineupError(
            f"A language model is asked for: set autointerp.llm.model (found '{llm.model}') and .endpoint, such as"
            f" http://127.0.0.1:8080/v1 (found '{llm.endpoint}')."
        )
    if "@" in llm.endpoint or "?" in llm.endpoint:
        raise LineupError(
            "autointerp.llm.endpoint holds '@' or '?', where keys are sometimes put, and it is stored with the study:"
            " give the address alone, and the key in LINEUP_LLM_KEY."
        )
    if llm.explain_examples > config.examples // 2:
        raise LineupError(
            f"autointerp.llm.explain_examples {llm.explain_examples} is more than half of autointerp.examples"
            f" {config.examples}: the other half is kept for scoring."
        )


def needs_llm(config: AutointerpConfig) -> bool:
    """Whether a language model is asked anything."""
    asked = [EXPLAINERS[name].kind for name in config.explainers] + [SCORERS[name].kind for name in config.scorers]
    return "llm" in asked


def needs_sample(config: AutointerpConfig) -> bool:
    """Whether there is work for a sample of the latents, after the work for all of them."""
    return needs_llm(config) or any(SCORERS[name].kind != "lexical" for name in config.scorers)
