"""Explains and scores a sample of an SAE's latents with models."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Int
from numpy.typing import NDArray

from pipeline.autointerp import prompts
from pipeline.autointerp.client import Client
from pipeline.autointerp.embedding import Sentences, similarities
from pipeline.autointerp.examples import Examples, Protocol, Split, draw
from pipeline.autointerp.judge import Explained, Texts, judged
from pipeline.autointerp.run import SCORES, ScoreKey, part_seed, scores_table
from pipeline.autointerp.scorers import Rated, score
from pipeline.autointerp.tables import SCORERS, LlmScorer
from pipeline.config import AutointerpConfig, Pool
from pipeline.latents import collect as collecting
from pipeline.latents.collect import Firings, Ints
from pipeline.progress import Advance
from pipeline.seeds import numpy_generator

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
