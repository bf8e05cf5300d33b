"""Scores explanations by a language model's answers: texts and contexts come in, rows of the table `scores` go out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.autointerp import prompts
from pipeline.autointerp.answers import Answer
from pipeline.autointerp.client import Client
from pipeline.autointerp.examples import Split
from pipeline.autointerp.questions import Asked
from pipeline.autointerp.run import SCORES, scores_table
from pipeline.autointerp.scorers import Rated, score
from pipeline.autointerp.tables import LlmScorer
from pipeline.latents.collect import Ints
from pipeline.progress import Advance
from pipeline.seeds import derive_seed, numpy_generator

ONE_POINT = "no log-probs: one operating point"
"""Remark on an AUROC that comes from answers of zero and one alone."""


@dataclass(frozen=True)
class Sheet:
    """One prompt: rows of `asked`, all of one latent."""

    explainer: str
    scorer: str
    latent: int
    rows: Ints
    prompt: prompts.Prompt


def judged(
    scorers: Sequence[LlmScorer],
    texts: Mapping[str, Mapping[int, str]],
    split: Split,
    vocabulary: Sequence[str],
    client: Client,
    each: int,
    seed: int,
    advance: Advance,
) -> list[pa.Table]:
    """Have the model judge every explanation (by explainer and latent) for every scorer, `each` contexts a prompt."""
    asked = {
        scorer.name: scorer.ask(scorer.examples(split).with_both(), derive_seed(seed, scorer.name))
        for scorer in scorers
    }
    sheets = [
        sheet
        for explainer, own in texts.items()
        for scorer in scorers
        for latent, text in own.items()
        for sheet in _sheets(explainer, scorer, latent, text, asked[scorer.name], vocabulary, each, seed)
    ]
    answers = client.ask_all([sheet.prompt for sheet in sheets], advance)
    found: dict[tuple[str, str], list[tuple[Sheet, Answer]]] = {}
    for sheet, answer in zip(sheets, answers, strict=True):
        found.setdefault((sheet.explainer, sheet.scorer), []).append((sheet, answer))
    return [_scores(explainer, name, asked[name], own) for (explainer, name), own in found.items()]


def _sheets(
    explainer: str,
    scorer: LlmScorer,
    latent: int,
    text: str,
    asked: Asked,
    vocabulary: Sequence[str],
    each: int,
    seed: int,
) -> list[Sheet]:
    """One latent's prompts: its contexts in random order, those of one turn together."""
    generator = numpy_generator(seed, scorer.name, "order", latent)
    rows = generator.permutation(asked.rows_of(latent))
    sheets = []
    for turn in np.unique(asked.turn[rows]):
        own = rows[asked.turn[rows] == turn]
        for start in range(0, len(own), each):
            part = own[start : start + each]
            prompt = prompts.judge(scorer.question, text, asked.tokens[part], asked.marked[part], vocabulary)
            sheets.append(Sheet(explainer, scorer.name, latent, part, prompt))
    return sheets


def _scores(explainer: str, scorer: str, asked: Asked, sheets: Sequence[tuple[Sheet, Answer]]) -> pa.Table:
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
    failed = _failed(explainer, scorer, asked, sheets, failures)
    return pa.concat_tables([scores_table(explainer, scorer, verdict, remarks), failed])


def _failed(
    explainer: str,
    scorer: str,
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
            {"latent": latent, "explainer": explainer, "scorer": scorer, "status": "failed", "reason": reason}
            | {"positives": int(truth.sum()), "negatives": int((~truth).sum())}
        )
    return pa.Table.from_pylist(rows, schema=SCORES)
