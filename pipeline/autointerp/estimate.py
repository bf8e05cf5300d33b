"""What a language model would be asked: settings come in, prompts, tokens and money go out; nothing is sent.

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
EXPLANATION_TOKENS = 100
TOKENS_OF_AN_ANSWER = 3
"""A zero or one in a list, and its share of what stands around it."""


class Estimate(NamedTuple):
    """At most, for one SAE: fewer if fewer latents qualify; cost in the currency of the prices."""

    prompts: int
    prompt_tokens: int
    answer_tokens: int
    cost: float


def estimate(config: AutointerpConfig, collect: CollectConfig) -> Estimate:
    """Count what a language model would be asked about one SAE."""
    sent: list[tuple[int, prompts.Prompt]] = []
    tokens = np.zeros((config.llm.explain_examples, collect.window), dtype=np.int32)
    marked = np.tile(np.arange(collect.window) < MARKS, (len(tokens), 1))
    if "llm" in config.explainers:
        sent.append((len(config.explain_from), prompts.explain(tokens, marked, marked.astype(np.float32), [WORD])))
    description = WORD * EXPLANATION_TOKENS
    for scorer in (SCORERS[name] for name in config.scorers):
        if isinstance(scorer, LlmScorer):
            each = min(config.llm.examples_per_prompt, config.examples)
            tokens = np.zeros((each, collect.window), dtype=np.int32)
            shown = np.tile(np.arange(collect.window) < MARKS, (each, 1))
            prompt = prompts.judge(scorer.question, description, tokens, shown, [WORD])
            explanations = len(config.explainers) * len(config.explain_from)
            sent.append((explanations * len(config.score_on) * math.ceil(config.examples / each), prompt))
    count = config.latents * sum(number for number, _ in sent)
    asked = config.latents * sum(number * _tokens(prompt) for number, prompt in sent)
    said = config.latents * sum(number * _answer_tokens(prompt) for number, prompt in sent)
    return Estimate(count, asked, said, Budget(config.llm).price(asked, said))


def _tokens(prompt: prompts.Prompt) -> int:
    return math.ceil((len(prompt.system) + len(prompt.user)) / CHARACTERS_PER_TOKEN)


def _answer_tokens(prompt: prompts.Prompt) -> int:
    return 10 + prompt.answers * TOKENS_OF_AN_ANSWER if prompt.answers else EXPLANATION_TOKENS
