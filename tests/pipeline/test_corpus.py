"""The corpus: where its text comes from, how it is cut and split, and how little of it is too little."""

import bz2
import hashlib
import json
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from pipeline.config import CorpusConfig
from pipeline.database import write_study
from pipeline.text import wikipedia
from pipeline.text.corpus import DOCUMENTS, MARGIN, Corpus, build_corpus
from tests.pipeline.toy import END, toy_documents, toy_tokenizer, write_toy_corpus

TOKENIZER = toy_tokenizer()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"jsonl:{write_toy_corpus(tmp_path_factory.mktemp('corpus') / 'toy.jsonl')}"


def config(source: str, tokens: int = 6400, **changes: object) -> CorpusConfig:
    return CorpusConfig.model_validate({"source": source, "tokens": tokens, "context_length": 32, **changes})


def test_there_are_exactly_as_many_whole_sequences_as_fit(source: str) -> None:
    corpus = build_corpus(config(source, tokens=6431), TOKENIZER, seed=0)
    assert corpus.tokens.shape == (200, 32)
    assert corpus.tokens.dtype == corpus.article.dtype == torch.int32
    assert corpus.article.shape == corpus.held_out.shape == (200,)
    assert sum(corpus.article_tokens) == 6400


def test_a_sequence_is_a_piece_of_its_own_article_and_of_no_other(source: str) -> None:
    corpus = build_corpus(config(source), TOKENIZER, seed=0)
    texts = dict(toy_documents())
    pieces = {}
    for title in corpus.titles:
        ids = TOKENIZER(texts[title])["input_ids"]
        pieces[title] = [tuple(ids[i : i + 32]) for i in range(0, len(ids) - 31, 32)]
    chosen: dict[str, list[tuple[int, ...]]] = {title: [] for title in corpus.titles}
    for tokens, article in zip(corpus.tokens.tolist(), corpus.article.tolist(), strict=True):
        chosen[corpus.titles[article]].append(tuple(tokens))
    for title, sequences in chosen.items():
        assert not Counter(sequences) - Counter(pieces[title]), title
        assert len(sequences) * 32 == corpus.article_tokens[corpus.titles.index(title)]


def test_whole_articles_are_held_out_and_their_share_is_met(source: str) -> None:
    for seed in range(5):
        corpus = build_corpus(config(source, held_out=0.15), TOKENIZER, seed)
        out, kept = (set(corpus.article[mask].tolist()) for mask in (corpus.held_out, ~corpus.held_out))
        assert not out & kept
        assert abs(corpus.held_out.float().mean() - 0.15) <= 1 / 200 * min(corpus.article_tokens) / 32


def test_at_least_one_article_is_held_out_and_one_is_not(tmp_path: Path) -> None:
    path = write_toy_corpus(tmp_path / "two.jsonl", n=2)
    for share in (0.001, 0.999):
        corpus = build_corpus(config(f"jsonl:{path}", tokens=640, held_out=share), TOKENIZER, seed=0)
        assert 0 < corpus.held_out.sum() < 20


def test_no_article_gives_more_than_its_share_unless_the_others_cannot(tmp_path: Path) -> None:
    long, short = toy_documents(1, sentences=500)[0][1], toy_documents(1, sentences=10)[0][1]
    lines = [{"text": long}, *({"text": long[:6000]} for _ in range(4)), {"text": short}]
    path = tmp_path / "uneven.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    of_short = len(TOKENIZER(short)["input_ids"]) // 32
    wanted = 5 * 20 + of_short
    corpus = build_corpus(config(f"jsonl:{path}", tokens=32 * wanted), TOKENIZER, seed=0)
    assert corpus.article_tokens == [20 * 32] * 5 + [of_short * 32]
    assert corpus.titles[0] == "line 1"


def test_of_many_documents_some_are_drawn_when_few_sequences_are_wanted(source: str) -> None:
    corpora = [build_corpus(config(source, tokens=320), TOKENIZER, seed) for seed in (0, 1)]
    for corpus in corpora:
        assert corpus.article_tokens == [32] * 10
        assert len(set(corpus.titles)) == 10
    assert corpora[0].titles != corpora[1].titles


def test_the_order_is_shuffled_so_that_a_prefix_is_a_fair_sample(source: str) -> None:
    corpus = build_corpus(config(source, tokens=32_000), TOKENIZER, seed=0)
    first = corpus.article[:300]
    assert len(first.unique()) == len(corpus.titles)
    assert abs(corpus.held_out[:300].float().mean() - corpus.held_out.float().mean()) < 0.06
    assert abs(np.corrcoef(corpus.article.numpy(), np.arange(1000))[0, 1]) < 0.1


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another(source: str) -> None:
    first, again, other = (build_corpus(config(source), TOKENIZER, seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256
    assert torch.equal(first.held_out, again.held_out)
    assert first.sha256 != other.sha256


def test_bos_stands_in_front_of_every_sequence_when_asked(source: str) -> None:
    corpus = build_corpus(config(source, prepend_bos=True), TOKENIZER, seed=0)
    assert corpus.tokens.shape == (200, 32)
    assert (corpus.tokens[:, 0] == TOKENIZER.bos_token_id).all()
    assert not (corpus.tokens[:, 1:] == TOKENIZER.bos_token_id).any()
    assert not (build_corpus(config(source), TOKENIZER, seed=0).tokens == TOKENIZER.bos_token_id).any()


def test_saving_and_loading_gives_the_same_corpus(source: str, tmp_path: Path) -> None:
    corpus = build_corpus(config(source), TOKENIZER, seed=0)
    corpus.save(tmp_path / "corpus")
    loaded = Corpus.load(tmp_path / "corpus")
    assert loaded.sha256 == corpus.sha256
    assert torch.equal(loaded.article, corpus.article)
    assert torch.equal(loaded.held_out, corpus.held_out)
    assert (loaded.titles, loaded.article_tokens) == (corpus.titles, corpus.article_tokens)


def test_the_tables_fit_the_database_and_hold_the_corpus(source: str, tmp_path: Path) -> None:
    corpus = build_corpus(config(source), TOKENIZER, seed=0)
    tables = corpus.tables().items()
    named = {name: table.append_column("model", pa.array(["toy"] * len(table))) for name, table in tables}
    write_study(tmp_path / "study.duckdb", named)
    with duckdb.connect(str(tmp_path / "study.duckdb"), read_only=True) as connection:
        articles = connection.execute("SELECT article, title, split, tokens FROM articles ORDER BY 1").fetchall()
        sequences = connection.execute("SELECT sequence, article, split, tokens FROM sequences ORDER BY 1").fetchall()
    assert [row[1] for row in articles] == corpus.titles
    assert [row[3] for row in articles] == corpus.article_tokens
    assert [row[3] for row in sequences] == corpus.tokens.tolist()
    splits = {article: split for article, _, split, _ in articles}
    for (_, article, split, _), held_out in zip(sequences, corpus.held_out.tolist(), strict=True):
        assert split == splits[article] == ("held_out" if held_out else "train")


def test_too_little_text_is_told_with_what_there_is(tmp_path: Path) -> None:
    path = write_toy_corpus(tmp_path / "few.jsonl", n=2, sentences=5)
    ids = [TOKENIZER(text)["input_ids"] for _, text in toy_documents(2, 5)]
    found = sum(len(document) // 32 * 32 for document in ids)
    with pytest.raises(UserError, match=rf"gives {found} tokens in 2 documents.*asks for 6,400"):
        build_corpus(config(f"jsonl:{path}"), TOKENIZER, seed=0)


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text(toy_documents(1)[0][1], encoding="utf-8")
    with pytest.raises(UserError, match="gives 1 documents, and a corpus needs two"):
        build_corpus(config(f"text:{path}", tokens=320), TOKENIZER, seed=0)


def test_one_text_file_with_blank_lines_is_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(text for _, text in toy_documents()), encoding="utf-8")
    corpus = build_corpus(config(f"text:{path}"), TOKENIZER, seed=0)
    assert corpus.tokens.shape == (200, 32)
    assert len(corpus.titles) > 20


@pytest.mark.parametrize("more", [[], ["<s>", "<bos>", "<|im_start|>"]])
def test_special_tokens_that_a_text_spells_are_characters(tmp_path: Path, more: list[str]) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": more})
    marks = [END, *more]
    assert set(marks) == set(tokenizer.all_special_tokens)
    text = " ".join(f"He wrote {marks[number % len(marks)]} on the {number}th of May." for number in range(100))
    path = tmp_path / "hostile.jsonl"
    path.write_text("\n".join([json.dumps({"text": text})] * 2), encoding="utf-8")
    corpus = build_corpus(config(f"jsonl:{path}", tokens=640), tokenizer, seed=0)
    assert not set(corpus.tokens.flatten().tolist()) & set(tokenizer.all_special_ids)
    pieces = [tokenizer.decode(tokens) for tokens in corpus.tokens.tolist()]
    assert all(piece in text for piece in pieces)
    assert all(mark in "".join(pieces) for mark in marks)


def test_an_empty_folder_gives_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gives 0 tokens in 0 documents"):
        build_corpus(config(f"text:{tmp_path}"), TOKENIZER, seed=0)


def test_fewer_tokens_than_two_sequences_are_too_few(source: str) -> None:
    with pytest.raises(UserError, match=r"corpus.tokens is 63, .* at least 64"):
        build_corpus(config(source, tokens=63), TOKENIZER, seed=0)


def test_bos_needs_a_tokeniser_that_has_one(source: str) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="no BOS token"):
        build_corpus(config(source, prepend_bos=True), tokenizer, seed=0)


# A source that is too large to be read whole.


def write_rows(path: Path, texts: list[str]) -> str:
    pq.write_table(pa.table({"text": texts}), path, row_group_size=16)
    return f"parquet:{path}"


def test_of_a_streamed_source_only_the_beginning_counts(tmp_path: Path) -> None:
    text = toy_documents(1, sentences=5)[0][1]
    each = len(TOKENIZER("100. " + text)["input_ids"]) // 32
    assert 1 <= each <= MARGIN * 200 / DOCUMENTS  # short enough to count in full
    enough = -(-MARGIN * 200 // each)  # documents until there are twice the 200 sequences
    texts = [f"{number}. {text}" for number in range(100, 100 + 3 * enough)]
    changed = [*texts[:enough], *("other text. " * 50 for _ in texts[enough:])]
    whole = build_corpus(config(write_rows(tmp_path / "a.parquet", texts)), TOKENIZER, seed=0)
    other = build_corpus(config(write_rows(tmp_path / "b.parquet", changed)), TOKENIZER, seed=0)
    assert whole.sha256 == other.sha256
    assert len(whole.titles) > 0.9 * enough  # and a good part of it, not the first document only
    assert max(int(title.removeprefix("row ")) for title in whole.titles) > 0.9 * enough


def test_a_long_document_does_not_stand_for_many(tmp_path: Path) -> None:
    document = toy_documents(1, sentences=20)[0][1]
    source = write_rows(tmp_path / "long.parquet", [document * 40, *([document] * 120)])
    corpus = build_corpus(config(source, tokens=6400), TOKENIZER, seed=0)
    assert len(TOKENIZER(document * 40)["input_ids"]) > MARGIN * 6400  # it alone would be enough
    assert len(corpus.titles) > 30
    assert max(corpus.article_tokens) <= 10 * 32


def test_a_streamed_source_that_ends_early_is_read_to_its_end(tmp_path: Path) -> None:
    texts = [text for _, text in toy_documents()]
    available = sum(len(TOKENIZER(text)["input_ids"]) // 32 for text in texts)
    corpus = build_corpus(config(write_rows(tmp_path / "all.parquet", texts), tokens=32 * available), TOKENIZER, seed=0)
    assert len(corpus.tokens) == available
    assert len(corpus.titles) == len(texts)


# Text for SAEs alone to train on.


def numbered(folder: Path) -> str:
    """400 documents; the last word of all of a document's sentences is its number."""
    documents = [f"the cat saw the dog near {number}. " * 20 for number in range(100, 500)]
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents), encoding="utf-8")
    return f"jsonl:{folder / 'rows.jsonl'}"


def test_training_tokens_come_from_other_documents_than_the_corpus(tmp_path: Path) -> None:
    made = build_corpus(config(numbered(tmp_path / "a"), tokens=3200, training_tokens=6431), TOKENIZER, seed=0)
    assert made.tokens.shape == (100, 32)
    assert made.training.shape == (200, 32)
    assert made.training.dtype == torch.int32
    own, others = ({tuple(row) for row in part.tolist()} for part in (made.tokens, made.training))
    assert len(own) > 20
    assert not own & others


def test_training_tokens_are_the_next_of_the_source_in_random_order(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a")
    few, many = (
        build_corpus(config(source, tokens=3200, training_tokens=tokens), TOKENIZER, seed=0).training.tolist()
        for tokens in (3200, 6400)
    )
    assert not Counter(map(tuple, few)) - Counter(map(tuple, many))
    assert few != many[:100]
    again = build_corpus(config(source, tokens=3200, training_tokens=6400), TOKENIZER, seed=0).training.tolist()
    other = build_corpus(config(source, tokens=3200, training_tokens=6400), TOKENIZER, seed=1).training.tolist()
    assert again == many != other
    assert sorted(other) == sorted(many)


def test_without_training_tokens_there_are_none_and_the_corpus_is_as_before(source: str) -> None:
    corpus = build_corpus(config(source), TOKENIZER, seed=0)
    assert corpus.training.shape == (0, 32)
    assert corpus.sha256 == hashlib.sha256(corpus.tokens.numpy().astype("<i4").tobytes()).hexdigest()


def test_training_tokens_count_in_the_hash_and_are_saved(tmp_path: Path) -> None:
    source = numbered(tmp_path / "a")
    one, other = (
        build_corpus(config(source, tokens=3200, training_tokens=tokens), TOKENIZER, seed=0) for tokens in (3200, 3232)
    )
    assert torch.equal(one.tokens, other.tokens)
    assert one.sha256 != other.sha256
    one.save(tmp_path / "saved")
    assert torch.equal(Corpus.load(tmp_path / "saved").training, one.training)


def test_too_little_text_after_the_corpus_is_told_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives [\d,]+ tokens after .* corpus.training_tokens asks for 9,000,000"):
        build_corpus(config(numbered(tmp_path / "a"), tokens=3200, training_tokens=9_000_000), TOKENIZER, seed=0)


# Wikipedia.

MARKUP = """{{Infobox river|name=Aa|length={{convert|80|km|mi}}}}
[[File:Aa.jpg|thumb|The [[mouth (river)|mouth]] of the river Aa as it looked in the year 1900.]]
The '''Aa''' ({{lang-nl|Aa}}) is a [[river]] of ''some'' {{cvt|80|km|mi}} in [[Europe|the west]].<ref name="a">{{cite
|title=Rivers}}</ref> It freezes in winter.<ref name="a" />

==Course==
{| class="wikitable"
|-
| One || two three four five six seven eight nine ten.
|}
* [[Town]]
* The river runs past the town and then, slowly, into the sea.
Its length <math>l</math> follows from the speed and the time it takes.<!-- really? -->
As {{nowrap|Queen [[Anne]]}} said: &quot;No river is longer than it needs to be.&quot;

== See also ==
* [[Another river]], which has the same name and is not to be confused with this one.
"""


def test_markup_becomes_prose() -> None:
    assert wikipedia.prose(MARKUP).split("\n\n") == [
        "The Aa is a river of some 80 km in the west. It freezes in winter.",
        "The river runs past the town and then, slowly, into the sea.",
        'As Queen Anne said: "No river is longer than it needs to be."',
    ]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("convert|80|km|mi", "80 km"),
        ("convert|10|to|20|km|mi|abbr=on", "10 to 20 km"),
        ("lang|de|Fluss", "Fluss"),
        ("citation needed|date=May 2015", ""),
        ("nowrap|a {{cvt|3|m|ft}} drop", "a 3 m drop"),
    ],
)
def test_templates_say_what_they_show(template: str, words: str) -> None:
    sentence = "The river of which we speak here is {} and nothing else."
    expected = " ".join(sentence.format(words).split())
    assert wikipedia.prose(sentence.format("{{" + template + "}}")) == expected


@settings(deadline=None)
@given(st.text(alphabet="[]{}|'=<>/* a.\n", max_size=200))
def test_torn_markup_is_no_error_and_leaves_no_double_spaces(markup: str) -> None:
    assert "  " not in wikipedia.prose(markup)


def test_redirects_are_left_out(tmp_path: Path) -> None:
    page = "<page><title>{}</title><ns>0</ns><id>1</id><revision><id>1</id><text>{}</text></revision></page>"
    pages = page.format("Old name", "#REDIRECT [[Aa]]") + page.format("Aa", "It is a river. " * 4)
    dump = tmp_path / "dump.xml.bz2"
    dump.write_bytes(
        bz2.compress(f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{pages}</mediawiki>'.encode())
    )
    assert [title for title, _ in wikipedia.articles(dump)] == ["Aa"]


def test_the_wikipedia_inside_gensim_is_enough_for_the_demo() -> None:
    demo = CorpusConfig(tokens=150_016, context_length=128)
    corpus = build_corpus(demo, TOKENIZER, seed=0)
    assert corpus.tokens.shape == (1172, 128)
    assert max(corpus.article_tokens) < 0.02 * corpus.tokens.numel()
    assert abs(corpus.held_out.float().mean() - demo.held_out) < 0.002
    text = TOKENIZER.batch_decode(corpus.tokens[:100])
    assert not any(mark in piece for piece in text for mark in ("{{", "}}", "[[", "]]", "==", "''", "<ref", "  "))
