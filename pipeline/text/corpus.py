"""Makes documents into token sequences of one length, split into a training and a held-out part."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Int32
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from core.errors import UserError
from pipeline.config import CorpusConfig
from pipeline.seeds import numpy_generator
from pipeline.text.documents import documents, find_source

Sequences = NDArray[np.int32]
"""Token ids [sequence, position]."""
Article = tuple[str, Sequences]
"""Title and sequences."""

BATCH = 256
"""Documents that are tokenised at once: what bounds the memory of a streamed corpus, beside its token ids."""
MARGIN = 2
"""A streamed source is read until it has given this many times the sequences wanted, so that there is a choice."""
DOCUMENTS = 100
"""They come from at least this many documents, or from all that there are: longer ones do not count in full."""


@dataclass(frozen=True)
class Corpus:
    """Sequences of token ids, each from one article, in an order of which any prefix is a fair sample."""

    tokens: Int32[Tensor, "sequence position"]
    article: Int32[Tensor, " sequence"]
    held_out: Bool[Tensor, " sequence"]
    titles: list[str]
    article_tokens: list[int]
    """Tokens of each article that are in the corpus."""
    training: Int32[Tensor, "sequence position"]
    """What SAEs train on in place of the corpus, from other documents, in random order; often no sequence at all."""

    @property
    def sha256(self) -> str:
        """Hash of all token ids, as little-endian int32."""
        found = hashlib.sha256(self.tokens.numpy().astype("<i4").data)
        found.update(self.training.numpy().astype("<i4").data)
        return found.hexdigest()

    @property
    def documents_sha256(self) -> str:
        """Hash of which sequences are of which article, and which are held out."""
        found = hashlib.sha256(self.article.numpy().astype("<i4").data)
        found.update(self.held_out.numpy().data)
        return found.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `corpus.safetensors` and `corpus.json` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name) for name in ("tokens", "article", "held_out", "training")}
        save_file(tensors, folder / "corpus.safetensors")
        facts = {"titles": self.titles, "article_tokens": self.article_tokens}
        (folder / "corpus.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Read what `save` wrote."""
        facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        return cls(**load_file(folder / "corpus.safetensors"), **facts)

    def halves(self, window: int) -> NDArray[np.bool_]:
        """Which windows of so many tokens lie in the second half of the documents, [window of the flattened corpus].

        Documents are dealt out from the largest down, each to the half that has less, so that both have about as much
        text; the same halves for every latent.
        """
        sizes = np.bincount(self.article.numpy(), minlength=len(self.titles))
        second, filled = np.zeros(len(sizes), dtype=bool), [0, 0]
        for article in np.argsort(-sizes, kind="stable"):
            second[article] = filled[1] < filled[0]
            filled[int(second[article])] += int(sizes[article])
        return np.repeat(second[self.article.numpy()], self.tokens.shape[1] // window)

    def tables(self) -> dict[str, pa.Table]:
        """The rows of `articles` and `sequences` in schema.sql."""
        n_sequences, n_positions = self.tokens.shape
        held_out = np.zeros(len(self.titles), dtype=bool)
        held_out[self.article[self.held_out].numpy()] = True
        offsets = pa.array(np.arange(n_sequences + 1, dtype=np.int32) * n_positions)
        return {
            "articles": pa.table(
                {
                    "article": pa.array(range(len(self.titles)), pa.int32()),
                    "title": pa.array(self.titles, pa.string()),
                    "split": _split(held_out),
                    "tokens": pa.array(self.article_tokens, pa.int32()),
                }
            ),
            "sequences": pa.table(
                {
                    "sequence": pa.array(range(n_sequences), pa.int32()),
                    "article": pa.array(self.article.numpy()),
                    "split": _split(self.held_out.numpy()),
                    "tokens": pa.ListArray.from_arrays(offsets, pa.array(self.tokens.flatten().numpy())),
                }
            ),
        }


def _split(held_out: NDArray[np.bool_]) -> pa.Array:
    return pa.array(np.where(held_out, "held_out", "train"), pa.string())


def build_corpus(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Corpus:
    """Tokenise every document once, cut it into sequences, draw as many as `config.tokens` asks for, and split them.

    A sequence never spans two articles; what is left over at an article's end is dropped. No article gives more than
    its equal share, unless others are too short to give theirs. Whole articles are held out. Of a streamed source, and
    of any when `config.training_tokens` asks for text after it, only the beginning is read, `MARGIN` times what is
    wanted. Raises UserError for an unknown or unreadable source, or too little text.
    """
    wanted = config.tokens // config.context_length
    source = _articles(config, tokenizer)
    found = _read(source, config, wanted)
    _check_enough([len(sequences) for _, sequences in found], wanted, config)
    articles = _draw(found, wanted, numpy_generator(seed, "corpus", "sequences"))
    counts = [len(sequences) for _, sequences in articles]
    held_out = _held_out_articles(counts, config.held_out, numpy_generator(seed, "corpus", "held_out"))
    order = numpy_generator(seed, "corpus", "order").permutation(wanted)
    article = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
    return Corpus(
        tokens=torch.from_numpy(np.concatenate([sequences for _, sequences in articles])[order]),
        article=torch.from_numpy(article),
        held_out=torch.from_numpy(held_out[article]),
        titles=[title for title, _ in articles],
        article_tokens=[count * config.context_length for count in counts],
        training=torch.from_numpy(_training(source, config, numpy_generator(seed, "corpus", "training"))),
    )


def _articles(config: CorpusConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Article]:
    """The documents that have a sequence or more, in the source's order, tokenised a batch of documents at a time."""
    start = [_bos(tokenizer)] if config.prepend_bos else []
    left = documents(config)
    while batch := list(itertools.islice(left, BATCH)):
        # verbose=False: a document is longer than the model's context, and that is no news. Where it spells a special
        # token, such as <|endoftext|>, those are characters like any others.
        made = tokenizer(
            [text for _, text in batch], add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        for (title, _), ids in zip(batch, made, strict=True):
            if len(sequences := _cut(ids, start, config.context_length)):
                yield title, sequences


def _read(source: Iterator[Article], config: CorpusConfig, wanted: int) -> list[Article]:
    """Those among which there is a choice; the others stay in the source."""
    partly = find_source(config)[0].streamed or config.training_tokens > 0
    found, read, longest = [], 0, max(1, MARGIN * wanted // DOCUMENTS)
    for title, sequences in source:
        found.append((title, sequences))
        read += min(len(sequences), longest)
        if partly and read >= MARGIN * wanted:
            break
    return found


def _training(source: Iterator[Article], config: CorpusConfig, generator: np.random.Generator) -> Sequences:
    """What the source gives after the corpus, shuffled: as many sequences as `config.training_tokens` asks for."""
    wanted = config.training_tokens // config.context_length
    found, there = [np.zeros((0, config.context_length), dtype=np.int32)], 0
    while there < wanted and (article := next(source, None)):
        found.append(article[1][: wanted - there])
        there += len(found[-1])
    if there < wanted:
        raise UserError(
            f"The corpus '{config.source}' gives {there * config.context_length:,} tokens after those that"
            f" corpus.tokens reads; corpus.training_tokens asks for {config.training_tokens:,}: give it more text, or"
            " lower one of the two."
        )
    return np.concatenate(found)[generator.permutation(there)]


def _bos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.bos_token_id is None:
        raise UserError("corpus.prepend_bos is true, but the model's tokeniser has no BOS token: set it to false.")
    return int(tokenizer.bos_token_id)


def _cut(ids: list[int], start: list[int], length: int) -> Sequences:
    """Consecutive sequences, each with `start` in front; what is left over at the end is dropped."""
    length -= len(start)
    text = np.array(ids[: len(ids) // length * length], dtype=np.int32).reshape(-1, length)
    return np.hstack([np.tile(np.array(start, dtype=np.int32), (len(text), 1)), text])


def _check_enough(available: list[int], wanted: int, config: CorpusConfig) -> None:
    if wanted < 2:
        raise UserError(
            f"corpus.tokens is {config.tokens}, but a corpus needs two sequences or more: ask for at least"
            f" {2 * config.context_length}, which is twice corpus.context_length."
        )
    if len(available) < 2 or sum(available) < wanted:
        raise UserError(
            f"The corpus '{config.source}' gives {sum(available) * config.context_length:,} tokens in {len(available)}"
            f" documents of {config.context_length} or more; corpus.tokens asks for {config.tokens:,}, in two documents"
            " or more: give it more text or lower corpus.tokens."
        )


def _draw(articles: list[Article], wanted: int, generator: np.random.Generator) -> list[Article]:
    """Up to `cap` sequences at random from every article, with the smallest cap that gives at least the number wanted;
    what that gives too much, articles at the cap give back, one sequence each, at random."""
    available = np.array([len(sequences) for _, sequences in articles])
    cap = next(cap for cap in itertools.count(1) if np.minimum(available, cap).sum() >= wanted)
    counts = np.minimum(available, cap)
    givers = generator.permutation(np.flatnonzero(counts == cap))
    counts[givers[: counts.sum() - wanted]] -= 1
    return [
        (title, sequences[np.sort(generator.permutation(len(sequences))[:count])])
        for (title, sequences), count in zip(articles, counts, strict=True)
        if count
    ]


def _held_out_articles(counts: list[int], share: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Whole articles, in random order, each taken when it still fits into the share; never none and never all."""
    room = min(round(share * sum(counts)), sum(counts) - min(counts))
    held_out = np.zeros(len(counts), dtype=bool)
    for article in generator.permutation(len(counts)):
        if counts[article] <= room:
            held_out[article] = True
            room -= counts[article]
    held_out[np.argmin(counts)] |= not held_out.any()
    return held_out
