"""Estimates prompts, tokens and cost of a language model; nothing is sent.

The prompts are built as in a real run, from made-up contexts; a token is taken to be four characters.
"""

import math
from typing import NamedTuple

import numpy as np

from pipeline.autointerp import prompts
from pipeline.autointerp.limits import CHARACTERS_PER_TOKEN, Budget
from pipeline.autointerp.tables import SCORERS, LlmScorer
from pipeline.config import AutointerpConfig, CollectConfig

WORD = " the"
MARKS = 3
"""Marked tokens of a context."""
EXPLANATION_TOKENS = 50


class Estimate(NamedTuple):
    """At most, for one SAE: fewer if fewer latents qualify; cost in the currency of the prices."""

    prompts: int
    prompt_tokens: int
    new_tokens: int
    """Those among them that a prompt does not share with the one before it: what a server works on that keeps these."""
    answer_tokens: int
    cost: float


class _Sent(NamedTuple):
    """So many prompts about a latent, with the tokens of each."""

    number: int
    tokens: int
    new: int
    answer: int


def estimate(config: AutointerpConfig, collect: CollectConfig) -> Estimate:
    """Count what a language model would be asked about one SAE, if it gives log-probs: each context is a question."""
    tokens = np.zeros((config.llm.explain_examples, collect.window), dtype=np.int32)
    marked = np.tile(np.arange(collect.window) < MARKS, (len(tokens), 1))
    sent = []
    if "llm" in config.explainers:
        long = _tokens(prompts.explain(tokens, marked, marked.astype(np.float32), [WORD]))
        sent.append(_Sent(len(config.explain_from), long, long, EXPLANATION_TOKENS))
    explanations = len(config.explainers) * len(config.explain_from) * (1 + config.floor)
    for scorer in (SCORERS[name] for name in config.scorers):
        if isinstance(scorer, LlmScorer):
            excerpt = prompts.excerpt(tokens[0], marked[0], [WORD])
            long = _tokens(prompts.judge_one(scorer.question, WORD * EXPLANATION_TOKENS, excerpt))
            new = math.ceil(len(excerpt + prompts.ANSWER) / CHARACTERS_PER_TOKEN)
            sets = explanations * len(config.score_on)
            sent += [_Sent(sets, long, long, 1), _Sent(sets * (config.examples - 1), long, new, 1)]

    asked = config.latents * sum(each.number * each.tokens for each in sent)
    said = config.latents * sum(each.number * each.answer for each in sent)
    return Estimate(
        prompts=config.latents * sum(each.number for each in sent),
        prompt_tokens=asked,
        new_tokens=config.latents * sum(each.number * each.new for each in sent),
        answer_tokens=said,
        cost=Budget(config.llm).price(asked, said),
    )


def _tokens(prompt: prompts.Prompt) -> int:
    return math.ceil((len(prompt.system) + len(prompt.user)) / CHARACTERS_PER_TOKEN)
