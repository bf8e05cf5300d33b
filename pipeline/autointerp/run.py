"""Explains and scores latents: all of an SAE without a model, a sample of them with language and sentence models."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Int
from numpy.typing import NDArray

from pipeline.autointerp import lexical, prompts
from pipeline.autointerp.client import Client
from pipeline.autointerp.embedding import Sentences, similarities
from pipeline.autointerp.examples import Asked, Examples, Protocol, Split, draw
from pipeline.autointerp.prompts import Answer
from pipeline.autointerp.scorers import Rated, Scores, score
from pipeline.autointerp.tables import SCORERS, LexicalScorer, LlmScorer
from pipeline.config import AutointerpConfig, Pool
from pipeline.latents import collect as collecting
from pipeline.latents.collect import Firings, Ints, Windows, nullable
from pipeline.progress import Advance
from pipeline.seeds import derive_seed, numpy_generator


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


EXPLANATIONS = pa.schema(
    [("latent", pa.int64())]
    + [(name, pa.string()) for name in ("explainer", "explain_from", "text", "rules", "status", "reason")]
)


@dataclass(frozen=True)
class Tools:
    """What the work is done with; made once for a study. `client` is None where no language model is asked."""

    vocabulary: Sequence[str]
    sentences: Sentences
    client: Client | None

    @property
    def model(self) -> Client:
        """The language model, where one is asked."""
        assert self.client is not None
        return self.client


def explain_and_score_sample(
    fired: Firings,
    explained: pa.Table,
    corpus: Int[NDArray[np.int32], " token"],
    tools: Tools,
    window: int,
    protocol: Protocol,
    config: AutointerpConfig,
    seed: int,
    advance: Advance,
) -> tuple[pa.Table, pa.Table]:
    """Rows of the tables `explanations` and `scores` that `explain_and_score` does not make.

    `explained` holds the rows of `explanations` that it made, with seeds from `part_seed(seed, …)`; `advance` counts
    prompts, or latents. Raises UserError where the language model or the sentence model cannot be asked at all.
    """
    chosen = sample_latents(explained, config.latents, seed)
    if len(chosen) == 0:
        return EXPLANATIONS.empty_table(), SCORES.empty_table()
    split = split_again(chosen, fired, corpus, window, protocol, seed)
    texts: dict[Explained, Texts] = {}
    explanations = [EXPLANATIONS.empty_table()]
    for explain_from, shown in split.explain.items():
        if "lexical" in config.explainers:
            texts[Explained("lexical", explain_from)] = _learnt(explained, explain_from, chosen)
        if "llm" in config.explainers:
            rows, own = _explain(len(chosen), explain_from, shown, tools, config, advance)
            texts[Explained("llm", explain_from)] = own
            explanations.append(rows)
    if config.floor:
        texts |= {key._replace(shuffled=True): exchanged(own, fired.count[chosen]) for key, own in texts.items()}
    tables = [SCORES.empty_table(), *_embedding_scores(texts, split, tools, config, advance)]
    scorers = [row for row in (SCORERS[name] for name in config.scorers) if isinstance(row, LlmScorer)]
    if scorers:
        tables += judged(scorers, texts, split, tools.vocabulary, tools.model, config, seed, advance)
    scores = pa.concat_tables(tables)
    scores = pa.concat_tables([scores, _missing(scores, texts, len(chosen), config)])
    return _renamed(pa.concat_tables(explanations), chosen), _renamed(scores, chosen)


def _learnt(explained: pa.Table, explain_from: Pool, chosen: Ints) -> Texts:
    """The lexical explanations of the chosen latents."""
    own = explained.filter(pa.compute.equal(explained["explain_from"], explain_from))
    known = dict(zip(own["latent"].to_pylist(), own["text"].to_pylist(), strict=True))
    return {place: known[latent] for place, latent in enumerate(chosen.tolist())}


def exchanged(texts: Texts, firings: Ints) -> Texts:
    """Each latent's explanation replaced by that of another, whose number of firings is next to its own: they are
    exchanged in pairs, or three in a ring. Empty where there are fewer than two.
    """
    order = sorted(texts, key=lambda place: (firings[place], place))
    if len(order) < 2:
        return {}
    last = len(order) - (3 if len(order) % 2 else 2)
    rings = [order[start : start + 2] for start in range(0, last, 2)] + [order[last:]]
    found = {place: texts[other] for ring in rings for place, other in zip(ring, ring[1:] + ring[:1], strict=True)}
    return dict(sorted(found.items()))


def sample_latents(explained: pa.Table, count: int, seed: int) -> Ints:
    """So many latents, drawn at random from those that qualify (all where there are fewer), ascending."""
    good = np.array([status == "ok" for status in explained["status"].to_pylist()], dtype=bool)
    latents = np.unique(explained["latent"].to_numpy()[good].astype(np.int64))
    return np.sort(numpy_generator(seed, "autointerp", "sample").permutation(latents)[:count])


def split_again(
    chosen: Ints,
    fired: Firings,
    corpus: Int[NDArray[np.int32], " token"],
    window: int,
    protocol: Protocol,
    seed: int,
) -> Split:
    """The split that `explain_and_score` drew, of the chosen latents alone, numbered by their places among them.

    Another draw would score the lexical explanation on contexts from which it was learnt.
    """
    parts: list[Split] = []
    for first in range(0, len(fired.count), collecting.LATENTS_IN_PART):
        last = min(first + collecting.LATENTS_IN_PART, len(fired.count))
        own = chosen[(chosen >= first) & (chosen < last)]
        if len(own) == 0:
            continue
        part = fired.part(first, last)
        where = collecting.windows(part, corpus.size, window)
        parts.append(draw(part, where, corpus, protocol, part_seed(seed, first)).of(chosen, first))
    return Split.joined(parts)


def _explain(
    count: int, explain_from: Pool, examples: Examples, tools: Tools, config: AutointerpConfig, advance: Advance
) -> tuple[pa.Table, Texts]:
    """Rows of `explanations` by the language model, and those that are texts."""
    asked = [explain_prompt(examples, place, tools.vocabulary, config.llm.explain_examples) for place in range(count)]
    texts, rows = {}, []
    for place, answer in enumerate(tools.model.ask_all(asked, advance)):
        text, reason = (
            (None, answer.reason) if answer.text is None else prompts.read_explanation(answer.text, answer.cut)
        )
        if text:
            texts[place] = text
        status = "ok" if text else "failed"
        rows.append(
            {"latent": place, "explainer": "llm", "explain_from": explain_from}
            | {"text": text, "status": status, "reason": reason}
        )
    return pa.Table.from_pylist(rows, schema=EXPLANATIONS), texts


def explain_prompt(examples: Examples, latent: int, vocabulary: Sequence[str], count: int) -> prompts.Prompt:
    """Shows so many of a latent's activating examples."""
    rows = np.flatnonzero((examples.latent == latent) & examples.active)[:count]
    return prompts.explain(examples.tokens[rows], examples.marked[rows], examples.activation[rows], vocabulary)


def _embedding_scores(
    texts: Mapping[Explained, Texts], split: Split, tools: Tools, config: AutointerpConfig, advance: Advance
) -> list[pa.Table]:
    tables = []
    names = [name for name in config.scorers if SCORERS[name].kind == "embedding"]
    for name, (score_on, drawn) in itertools.product(names, split.score.items()):
        examples = drawn.with_both()
        silent = np.zeros(examples.tokens.shape[1], dtype=bool)
        contexts = np.array([prompts.excerpt(row, silent, tools.vocabulary) for row in examples.tokens], dtype=object)
        for explained, own in texts.items():
            yes = np.full(len(contexts), np.nan)
            for done, (place, text) in enumerate(own.items(), start=1):
                rows = np.flatnonzero(examples.latent == place)
                if len(rows):
                    yes[rows] = similarities(tools.sentences, text, contexts[rows].tolist())
                advance(done, len(own))
            kept = ~np.isnan(yes)
            verdict = score(Rated(examples.latent[kept], yes[kept], examples.active[kept]))
            none = np.full(len(verdict.latent), np.nan)
            verdict = replace(verdict, balanced_accuracy=none, f1=none)
            tables.append(scores_table(explained.scored(name, score_on), config, verdict))
    return tables


def _missing(scores: pa.Table, texts: Mapping[Explained, Texts], count: int, config: AutointerpConfig) -> pa.Table:
    """Rows for what was not scored, with the reason."""
    lacks = {False: "no explanation", True: "no explanation of another latent"}
    columns = [scores[name].to_pylist() for name in (*ScoreKey._fields, "latent")]
    there = set(zip(*columns, strict=True))
    rows = [
        key._asdict()
        | {"latent": place, "split_by": config.split_by, "examples": config.examples, "positives": 0, "negatives": 0}
        | {"status": "not_applicable"}
        | {"reason": "no unseen contexts of both kinds" if place in own else lacks[explained.shuffled]}
        for explained, own in texts.items()
        for name, score_on in itertools.product(config.scorers, config.score_on)
        if SCORERS[name].kind != "lexical"
        for key in [explained.scored(name, score_on)]
        for place in range(count)
        if (*key, place) not in there
    ]
    return pa.Table.from_pylist(rows, schema=SCORES)


def _renamed(table: pa.Table, chosen: Ints) -> pa.Table:
    """Latents by their numbers, for their places in the sample."""
    return table.set_column(0, "latent", pa.array(chosen[table["latent"].to_numpy()]))
