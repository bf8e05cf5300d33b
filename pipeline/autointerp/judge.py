"""Scores explanations by a language model's answers about marked contexts."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

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


class Explained(NamedTuple):
    """Explanations: by whom, from what, and whether latents got each other's."""

    explainer: str
    explain_from: Pool
    shuffled: bool = False

    def scored(self, scorer: str, score_on: Pool) -> ScoreKey:
        """What their scores are known by."""
        return ScoreKey(self.explainer, self.explain_from, scorer, score_on, self.shuffled)


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
    each = 1 if client.gives_probabilities else config.llm.examples_per_prompt
    sheets = [
        sheet
        for explained, own in texts.items()
        for scorer, score_on in itertools.product(scorers, split.score)
        for key in [explained.scored(scorer.name, score_on)]
        for latent, text in own.items()
        for sheet in _sheets(key, scorer, latent, text, asked[scorer.name, score_on], vocabulary, each, seed)
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
            shown = [prompts.excerpt(asked.tokens[row], asked.marked[row], vocabulary) for row in part]
            prompt = (
                prompts.judge_one(scorer.question, text, shown[0])
                if each == 1
                else prompts.judge_several(scorer.question, text, shown)
            )
            sheets.append(Sheet(key, latent, part, prompt))
    return sheets


def _scores(key: ScoreKey, config: AutointerpConfig, asked: Asked, sheets: Sequence[tuple[Sheet, Answer]]) -> pa.Table:
    """A latent has a score when all of its prompts were answered: what is refused is not refused at random."""
    yes = np.full(len(asked.latent), np.nan)
    failures: dict[int, list[str]] = {}
    for sheet, answer in sheets:
        try:
            yes[sheet.rows] = _said(sheet.prompt, answer)
        except UnreadError as error:
            failures.setdefault(sheet.latent, []).append(str(error))
    latents = np.unique([sheet.latent for sheet, _ in sheets])
    kept = ~np.isin(asked.latent, list(failures)) & np.isin(asked.latent, latents)
    verdict = score(Rated(asked.latent[kept], yes[kept], asked.truth[kept]))
    remark = ONE_POINT if any(sheet.prompt.form == "list" for sheet, _ in sheets) else ""
    failed = _failed(key, config, asked, sheets, failures)
    return pa.concat_tables([scores_table(key, config, verdict, [remark] * len(verdict.latent)), failed])


class UnreadError(Exception):
    """An answer that says neither yes nor no, and why."""


def _said(prompt: prompts.Prompt, answer: Answer) -> list[float] | list[int]:
    """What the answer gives to yes for each context of its prompt."""
    if prompt.form == "yes_no" and answer.likeliest:
        yes, no = prompts.yes_and_no(answer.likeliest)
        if not yes + no > 0:
            words = ", ".join(repr(token) for token in list(answer.likeliest)[:3])
            raise UnreadError(f"neither yes nor no among the {len(answer.likeliest)} likeliest tokens: {words}, …")
        return [yes / (yes + no)]
    if answer.text is None or prompt.form == "yes_no":
        raise UnreadError(answer.reason or "unparsed: no log-probs")
    digits = prompts.read_answers(answer.text, prompt.answers)
    if digits is None:
        raise UnreadError(prompts.TOO_LONG if answer.cut else prompts.unread(answer.text))
    return digits


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
