"""The tables `EXPLAINERS` and `SCORERS`, whose rows a study file names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from pipeline import llama
from pipeline.autointerp import prompts
from pipeline.autointerp.embedding import model_folder
from pipeline.autointerp.examples import Asked, Examples, ask_detection, ask_fuzzing, ask_fuzzing_hard
from pipeline.autointerp.scorers import Rated, detection, fuzzing
from pipeline.config import AutointerpConfig, Pool
from pipeline.measures.metrics import Metric

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
    label: str
    description: str
    kind: Kind


@dataclass(frozen=True)
class LexicalScorer(Scorer):
    """One that a rule answers: from examples, the probability that the explanation gives to each token, and a seed."""

    rate: Callable[[Examples, NDArray[np.float64], int], Rated]


@dataclass(frozen=True)
class LlmScorer(Scorer):
    """One that a language model answers: what it is shown, made from examples and a seed, and what it is asked."""

    ask: Callable[[Examples, int], Asked]
    question: prompts.Question


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
            "Detection",
            "how well the explanation tells contexts that activate the latent from silent ones",
            "lexical",
            detection,
        ),
        LexicalScorer(
            "fuzzing",
            "Fuzzing",
            "how well the explanation tells rightly marked tokens from as many random marks in silent contexts",
            "lexical",
            fuzzing,
        ),
        Scorer(
            "embedding",
            "Embedding",
            "how well the cosine between the sentence embeddings of explanation and context tells contexts that"
            " activate the latent from silent ones; a cosine has no threshold of its own: AUROC and AUPRC only",
            "embedding",
        ),
        LlmScorer(
            "llm_detection",
            "LLM detection",
            "how well a language model, given the explanation, tells contexts that activate the latent from silent"
            " ones, by its probability of yes; without log-probs a single operating point",
            "llm",
            ask_detection,
            prompts.DETECTION,
        ),
        LlmScorer(
            "llm_fuzzing",
            "LLM fuzzing",
            "how well a language model, given the explanation, tells rightly marked tokens from random marks in silent"
            " contexts",
            "llm",
            ask_fuzzing,
            prompts.FUZZING,
        ),
        LlmScorer(
            "llm_fuzzing_hard",
            "LLM fuzzing, hard",
            "the same with wrong marks in activating contexts: knowing which contexts activate it does not help",
            "llm",
            ask_fuzzing_hard,
            prompts.FUZZING,
        ),
    )
}

POOL_WORDS: dict[Pool, str] = {
    "strongest": "strongest contexts",
    "quantiles": "all strengths",
    "random": "random contexts",
}
"""What pages call a pool."""
POOL_DESCRIPTIONS: dict[Pool, str] = {
    "strongest": "the contexts of its largest activations",
    "quantiles": "contexts of all strengths, equally many from strata of its activations",
    "random": "its activating contexts at random",
}
"""Which contexts of a latent it holds."""


def score_metrics(config: AutointerpConfig) -> list[Metric]:
    """What each score of a study means: a row of `metrics` and a column of `latents` for every scorer and protocol, in
    the order of the study file.
    """
    return [
        _score_metric(SCORERS[name], explain_from, score_on)
        for explain_from, score_on in _own_pools_first(config)
        for name in config.scorers
    ]


def _own_pools_first(config: AutointerpConfig) -> list[tuple[Pool, Pool]]:
    """What is explained and scored on the same pool, then the rest."""
    pairs = [(explain_from, score_on) for explain_from in config.explain_from for score_on in config.score_on]
    return sorted(pairs, key=lambda pair: pair[0] != pair[1])


def _score_metric(scorer: Scorer, explain_from: Pool, score_on: Pool) -> Metric:
    protocol, words = str(score_on), POOL_WORDS[score_on]
    if explain_from != score_on:
        protocol, words = f"{explain_from}_to_{score_on}", f"{POOL_WORDS[explain_from]} → {words}"
    shown, asked = POOL_DESCRIPTIONS[explain_from], POOL_DESCRIPTIONS[score_on]
    return Metric(
        f"{scorer.name}_{protocol}_auroc",
        "latent",
        f"{scorer.label} AUROC, {words}",
        "",
        f"{scorer.description[0].upper()}{scorer.description[1:]}. Explained from {shown}; scored on"
        f" {asked}, none of which the explainer has seen. Area under the ROC curve: 0.5 is chance.",
        True,
        lower=0,
        upper=1,
        scorer=scorer.name,
        explain_from=explain_from,
        score_on=score_on,
    )


def check_scorers(config: AutointerpConfig) -> None:
    """Raise UserError for scorers that do not exist, twice the same, and those that lack what they need."""
    for name in config.scorers:
        if name not in SCORERS:
            raise UserError(f"Unknown scorer '{name}' in autointerp.scorers; known: {', '.join(SCORERS)}.")
    for what, names in (("explainers", config.explainers), ("scorers", config.scorers)):
        if len(set(names)) != len(names) or (what == "explainers" and not names):
            raise UserError(f"autointerp.{what} {list(names)} must name one or more, none of them twice.")
    kinds = {SCORERS[name].kind for name in config.scorers}
    if "lexical" in kinds and "lexical" not in config.explainers:
        raise UserError(
            "Scorers of kind lexical (such as detection) rate the rules of the explainer lexical: add it to"
            " autointerp.explainers, or leave them out of autointerp.scorers."
        )
    if "embedding" in kinds:
        model_folder()
    if needs_llm(config):
        _check_llm(config)


def _check_llm(config: AutointerpConfig) -> None:
    llm = config.llm
    if llm.explain_examples > config.examples // 2:
        raise UserError(
            f"autointerp.llm.explain_examples {llm.explain_examples} is more than half of autointerp.examples"
            f" {config.examples}: the other half is kept for scoring."
        )
    if llm.endpoint == llama.LOCAL:
        llama.find(llm.model)
        return
    if not llm.model or not llm.endpoint.startswith(("http://", "https://")):
        raise UserError(
            f"A language model is asked for: set autointerp.llm.model (found '{llm.model}') and .endpoint, such as"
            f" http://127.0.0.1:8080/v1, or `local` for one on this machine (found '{llm.endpoint}')."
        )
    if "@" in llm.endpoint or "?" in llm.endpoint:
        raise UserError(
            "autointerp.llm.endpoint holds '@' or '?', where keys are sometimes put, and it is stored with the study:"
            " give the address alone, and the key in LINEUP_LLM_KEY."
        )


def has_curve(config: AutointerpConfig) -> bool:
    """Whether there is a specification curve: of lexical scores, where the study has any."""
    return config.specifications.latents > 0 and any(SCORERS[name].kind == "lexical" for name in config.scorers)


def needs_llm(config: AutointerpConfig) -> bool:
    """Whether a language model is asked anything."""
    asked = [EXPLAINERS[name].kind for name in config.explainers] + [SCORERS[name].kind for name in config.scorers]
    return "llm" in asked


def needs_sample(config: AutointerpConfig) -> bool:
    """Whether there is work for a sample of the latents, after the work for all of them."""
    return needs_llm(config) or any(SCORERS[name].kind != "lexical" for name in config.scorers)
