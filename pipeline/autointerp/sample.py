"""Explains and scores a sample of an SAE's latents with models: firings and texts come in, more rows of both tables go
out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy.typing import NDArray

from pipeline.autointerp import prompts
from pipeline.autointerp.client import Client
from pipeline.autointerp.embedding import Sentences, similarities
from pipeline.autointerp.examples import Examples, Split, draw
from pipeline.autointerp.judge import judged
from pipeline.autointerp.run import SCORES, part_seed, scores_table
from pipeline.autointerp.scorers import Rated, score
from pipeline.autointerp.tables import SCORERS, LlmScorer
from pipeline.config import AutointerpConfig, CollectConfig
from pipeline.latents import collect as collecting
from pipeline.latents.collect import Firings, Ints
from pipeline.progress import Advance
from pipeline.seeds import numpy_generator

EXPLANATIONS = pa.schema(
    [("latent", pa.int64())] + [(name, pa.string()) for name in ("explainer", "text", "rules", "status", "reason")]
)

Texts = Mapping[int, str]
"""Explanations, by the latent's place in the sample; one that failed is not there."""


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
    collect: CollectConfig,
    config: AutointerpConfig,
    seed: int,
    advance: Advance,
) -> tuple[pa.Table, pa.Table]:
    """Rows of the tables `explanations` and `scores` that `explain_and_score` does not make.

    `explained` holds the rows of `explanations` that it made, with seeds from `part_seed(seed, …)`; `advance` counts
    prompts, or latents. Raises LineupError where the language model or the sentence model cannot be asked at all.
    """
    chosen = sample_latents(explained, config.latents, seed)
    if len(chosen) == 0:
        return EXPLANATIONS.empty_table(), SCORES.empty_table()
    split = split_again(chosen, fired, corpus, collect, config, seed)
    known = dict(zip(explained["latent"].to_pylist(), explained["text"].to_pylist(), strict=True))
    texts: dict[str, Texts] = {"lexical": {place: known[latent] for place, latent in enumerate(chosen.tolist())}}
    explanations = EXPLANATIONS.empty_table()
    if "llm" in config.explainers:
        explanations, texts["llm"] = _explain(len(chosen), split.explain, tools, config, advance)
    texts = {name: texts[name] for name in config.explainers}
    tables = [SCORES.empty_table(), *_embedding_scores(texts, split, tools, config, advance)]
    scorers = [row for row in (SCORERS[name] for name in config.scorers) if isinstance(row, LlmScorer)]
    if scorers:
        each = config.llm.examples_per_prompt
        tables += judged(scorers, texts, split, tools.vocabulary, tools.model, each, seed, advance)
    scores = pa.concat_tables(tables)
    scores = pa.concat_tables([scores, _missing(scores, texts, len(chosen), config)])
    return _renamed(explanations, chosen), _renamed(scores, chosen)


def sample_latents(explained: pa.Table, count: int, seed: int) -> Ints:
    """So many latents, drawn at random from those that qualify (all where there are fewer), ascending."""
    good = np.array([status == "ok" for status in explained["status"].to_pylist()], dtype=bool)
    latents = explained["latent"].to_numpy()[good].astype(np.int64)
    return np.sort(numpy_generator(seed, "autointerp", "sample").permutation(latents)[:count])


def split_again(
    chosen: Ints,
    fired: Firings,
    corpus: Int[NDArray[np.int32], " token"],
    collect: CollectConfig,
    config: AutointerpConfig,
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
        where = collecting.windows(part, corpus.size, collect.window)
        drawn = draw(part, where, corpus, collect, config, part_seed(seed, first))
        parts.append(drawn.of(chosen, first))
    return Split(
        explain=Examples.joined([part.explain for part in parts]),
        strongest=Examples.joined([part.strongest for part in parts]),
        quantiles=Examples.joined([part.quantiles for part in parts]),
        excluded=np.concatenate([part.excluded for part in parts]),
    )


def _explain(
    count: int, examples: Examples, tools: Tools, config: AutointerpConfig, advance: Advance
) -> tuple[pa.Table, Texts]:
    """Rows of `explanations` by the language model, and those that are texts."""
    asked = [explain_prompt(examples, place, tools.vocabulary, config.llm.explain_examples) for place in range(count)]
    texts, rows = {}, []
    for place, answer in enumerate(tools.model.ask_all(asked, advance)):
        text = None if answer.text is None else prompts.read_explanation(answer.text)
        reason = answer.reason if answer.text is None or text else prompts.unread(answer.text)
        if text:
            texts[place] = text
        status = "ok" if text else "failed"
        rows.append({"latent": place, "explainer": "llm", "text": text, "status": status, "reason": reason})
    return pa.Table.from_pylist(rows, schema=EXPLANATIONS), texts


def explain_prompt(examples: Examples, latent: int, vocabulary: Sequence[str], count: int) -> prompts.Prompt:
    """Shows so many of a latent's activating examples."""
    rows = np.flatnonzero((examples.latent == latent) & examples.active)[:count]
    return prompts.explain(examples.tokens[rows], examples.marked[rows], examples.activation[rows], vocabulary)


def _embedding_scores(
    texts: Mapping[str, Texts], split: Split, tools: Tools, config: AutointerpConfig, advance: Advance
) -> list[pa.Table]:
    tables = []
    for scorer in (SCORERS[name] for name in config.scorers if SCORERS[name].kind == "embedding"):
        examples = scorer.examples(split).with_both()
        silent = np.zeros(examples.tokens.shape[1], dtype=bool)
        contexts = np.array([prompts.excerpt(row, silent, tools.vocabulary) for row in examples.tokens], dtype=object)
        for explainer, own in texts.items():
            yes = np.full(len(contexts), np.nan)
            for done, (place, text) in enumerate(own.items(), start=1):
                rows = np.flatnonzero(examples.latent == place)
                if len(rows):
                    yes[rows] = similarities(tools.sentences, text, contexts[rows].tolist())
                advance(done, len(own))
            kept = ~np.isnan(yes)
            verdict = score(Rated(examples.latent[kept], yes[kept], examples.active[kept]))
            none = np.full(len(verdict.latent), np.nan)
            tables.append(scores_table(explainer, scorer.name, replace(verdict, balanced_accuracy=none, f1=none)))
    return tables


def _missing(scores: pa.Table, texts: Mapping[str, Texts], count: int, config: AutointerpConfig) -> pa.Table:
    """Rows for what was not scored, with the reason."""
    columns = [scores[name].to_pylist() for name in ("explainer", "scorer", "latent")]
    there = set(zip(*columns, strict=True))
    rows = [
        {"latent": place, "explainer": explainer, "scorer": name, "positives": 0, "negatives": 0}
        | {"status": "not_applicable"}
        | {"reason": "no unseen contexts of both kinds" if place in own else "no explanation"}
        for explainer, own in texts.items()
        for name in config.scorers
        if SCORERS[name].kind != "lexical"
        for place in range(count)
        if (explainer, name, place) not in there
    ]
    return pa.Table.from_pylist(rows, schema=SCORES)


def _renamed(table: pa.Table, chosen: Ints) -> pa.Table:
    """Latents by their numbers, for their places in the sample."""
    return table.set_column(0, "latent", pa.array(chosen[table["latent"].to_numpy()]))
