"""Scores explanations by a language model's answers: texts and contexts come in, rows of the table `scores` go out."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.autointerp import prompts
from pipeline.autointerp.answers import Answer
from pipeline.autointerp.client import Client
from pipeline.autointerp.examples import Split
from pipeline.autointerp.questions import Asked
from pipeline.autointerp.run import SCORES, ScoreKey, scores_table
from pipeline.autointerp.scorers import Rated, score
from pipeline.autointerp.tables import LlmScorer
from pipeline.config import AutointerpConfig, Pool
from pipeline.latents.collect import Ints
from pipeline.progress import Advance
from pipeline.seeds import derive_seed, numpy_generator

ONE_POINT = "no log-probs: one operating point"
"""Remark on an AUROC that comes from answers of zero and one alone."""


Explained: TypeAlias = tuple[str, Pool]
"""An explainer, and what it explained from."""
Texts: TypeAlias = Mapping[int, str]
"""Explanations, by the latent's place in the sample; one that failed is not there."""


@dataclass(frozen=True)
class Sheet:
    """One prompt: rows of `asked`, all of one latent."""

    key: ScoreKey
    latent: int
    rows: Ints
    prompt: prompts.Prompt


def judged(
    scorers: Sequence[LlmScorer],
    texts: Mapping[Explained, Texts],
    split: Split,
    vocabulary: Sequence[str],
    client: Client,
    config: AutointerpConfig,
    seed: int,
    advance: Advance,
) -> list[pa.Table]:
    """Have the model judge every explanation (by latent) for every scorer, on each pool that is scored on."""
    asked = {
        (scorer.name, score_on): scorer.ask(examples.with_both(), derive_seed(seed, scorer.name))
        for scorer, (score_on, examples) in itertools.product(scorers, split.score.items())
    }
    sheets = [
        sheet
        for (explainer, explain_from), own in texts.items()
        for scorer, score_on in itertools.product(scorers, split.score)
        for key in [ScoreKey(explainer, explain_from, scorer.name, score_on)]
        for latent, text in own.items()
        for sheet in _sheets(key, scorer, latent, text, asked[scorer.name, score_on], vocabulary, config, seed)
    ]
    answers = client.ask_all([sheet.prompt for sheet in sheets], advance)
    found: dict[ScoreKey, list[tuple[Sheet, Answer]]] = {}
    for sheet, answer in zip(sheets, answers, strict=True):
        found.setdefault(sheet.key, []).append((sheet, answer))
    return [_scores(key, config, asked[key.scorer, key.score_on], own) for key, own in found.items()]


def _sheets(
    key: ScoreKey,
    scorer: LlmScorer,
    latent: int,
    text: str,
    asked: Asked,
    vocabulary: Sequence[str],
    config: AutointerpConfig,
    seed: int,
) -> list[Sheet]:
    """One latent's prompts: its contexts in random order, those of one turn together."""
    generator = numpy_generator(seed, scorer.name, "order", latent)
    rows = generator.permutation(asked.rows_of(latent))
    sheets, each = [], config.llm.examples_per_prompt
    for turn in np.unique(asked.turn[rows]):
        own = rows[asked.turn[rows] == turn]
        for start in range(0, len(own), each):
            part = own[start : start + each]
            prompt = prompts.judge(scorer.question, text, asked.tokens[part], asked.marked[part], vocabulary)
            sheets.append(Sheet(key, latent, part, prompt))
    return sheets


def _scores(key: ScoreKey, config: AutointerpConfig, asked: Asked, sheets: Sequence[tuple[Sheet, Answer]]) -> pa.Table:
    """A latent has a score when all of its prompts were answered: what is refused is not refused at random."""
    said, probable = np.full(len(asked.latent), np.nan), np.full(len(asked.latent), np.nan)
    failures: dict[int, list[str]] = {}
    for sheet, answer in sheets:
        digits = None if answer.text is None else prompts.read_answers(answer.text, len(sheet.rows))
        if digits is None:
            failures.setdefault(sheet.latent, []).append(answer.reason or prompts.unread(answer.text or ""))
            continue
        said[sheet.rows] = [digit for digit, _ in digits]
        probable[sheet.rows] = prompts.read_probabilities(digits, answer.tokens) or np.nan
    latents = np.unique([sheet.latent for sheet, _ in sheets])
    without = np.unique(asked.latent[np.isnan(probable)])
    kept = ~np.isin(asked.latent, list(failures)) & np.isin(asked.latent, latents)
    yes = np.where(np.isin(asked.latent, without), said, probable)
    verdict = score(Rated(asked.latent[kept], yes[kept], asked.truth[kept]))
    remarks = [ONE_POINT if latent in without else "" for latent in verdict.latent]
    failed = _failed(key, config, asked, sheets, failures)
    return pa.concat_tables([scores_table(key, config, verdict, remarks), failed])


def _failed(
    key: ScoreKey,
    config: AutointerpConfig,
    asked: Asked,
    sheets: Sequence[tuple[Sheet, Answer]],
    failures: Mapping[int, Sequence[str]],
) -> pa.Table:
    rows = []
    for latent, reasons in failures.items():
        truth: NDArray[np.bool_] = asked.truth[asked.rows_of(latent)]
        prompts_of_it = sum(sheet.latent == latent for sheet, _ in sheets)
        reason = f"{len(reasons)} of {prompts_of_it} prompts: {reasons[0]}"
        rows.append(
            key._asdict()
            | {"split_by": config.split_by, "examples": config.examples}
            | {"latent": latent, "status": "failed", "reason": reason}
            | {"positives": int(truth.sum()), "negatives": int((~truth).sum())}
        )
    return pa.Table.from_pylist(rows, schema=SCORES)
