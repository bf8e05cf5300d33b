"""Where text comes from: every kind of source, what it needs, and what is said when it is not what it should be."""

import errno
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from pipeline.config import CorpusConfig
from pipeline.text.documents import CHARACTERS, SOURCES, Document, documents
from tests.pipeline.toy import toy_documents


def read(source: str, **keys: object) -> list[Document]:
    return list(documents(CorpusConfig.model_validate({"source": source, **keys})))


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder which the library reads as it reads a data set of the Hub, with two subsets and two splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    for subset in ("en", "de"):
        for split in ("train", "test"):
            (folder / subset).mkdir(parents=True, exist_ok=True)
            rows = [{"text": f"{subset} {split} {number}", "number": number} for number in range(3)]
            (folder / subset / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = "".join(
        f"- config_name: {subset}\n  data_files:\n  - {{split: train, path: {subset}/train.jsonl}}\n"
        f"  - {{split: test, path: {subset}/test.jsonl}}\n"
        for subset in ("en", "de")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{files}---\n", encoding="utf-8")
    return f"hub:{folder}"


def test_a_folder_of_text_files_is_one_document_a_file(tmp_path: Path) -> None:
    for title, text in toy_documents(3):
        (tmp_path / f"{title}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "notes.md").write_text("no corpus", encoding="utf-8")
    assert read(f"text:{tmp_path}") == toy_documents(3)


def test_one_text_file_is_cut_at_blank_lines_into_documents_of_some_length(tmp_path: Path) -> None:
    paragraphs = [f"{number} {text[:100]}".strip() for number, (_, text) in enumerate(toy_documents(40))]
    path = tmp_path / "book.txt"
    path.write_bytes(("\ufeff" + "\r\n \r\n".join(paragraphs) + "\r\n\r\n").encode())  # as editors on Windows write
    found = read(f"text:{path}", context_length=32)
    assert [title for title, _ in found[:3]] == ["book 1", "book 2", "book 3"]
    assert all(len(text) >= CHARACTERS * 32 for _, text in found[:-1])
    assert all(len(text) < CHARACTERS * 32 + 110 for _, text in found)
    assert [part.strip() for _, text in found for part in text.split("\n \n")] == paragraphs


def test_one_text_file_without_blank_lines_says_how_it_would_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(text for _, text in toy_documents(3)), encoding="utf-8")
    with pytest.raises(UserError, match=r"book\.txt' gives 1 documents, .* at blank lines .* 2,048 characters"):
        read(f"text:{path}")
    path.write_text("\n\n \n", encoding="utf-8")
    with pytest.raises(UserError, match=r"book\.txt' gives 0 documents"):
        read(f"text:{path}")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfone")
    assert read(f"text:{tmp_path}") == [("a", "one"), ("b", "one")]
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n{"text": "\\ufeffone \\ufeff"}')
    assert read(f"jsonl:{lines}") == [("line 1", "one"), ("line 2", "one \ufeff")]
    rows = write_parquet(tmp_path / "rows.parquet", text=["\ufeffone"])
    assert read(f"parquet:{rows}") == [("row 1", "one")]


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_a_folder_that_cannot_be_looked_into_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    write_parquet(tmp_path / "a.parquet", text=["one"])
    scandir = os.scandir

    def closed(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"the folder '.*closed' of corpus\.source: Permission denied"):
        read(f"{kind}:{tmp_path}")


def test_a_line_is_a_document_with_its_title_or_its_number(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"body": "one", "title": "A"}\n\n{"body": "two"}\n', encoding="utf-8")
    assert read(f"jsonl:{path}", column="body") == [("A", "one"), ("line 3", "two")]


def test_a_row_is_a_document_and_one_without_text_is_none(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", body=["one", None, "three"], title=["A", "B", None], text=[1, 2, 3])
    assert read(f"parquet:{path}", column="body") == [("A", "one"), ("row 3", "three")]


def test_a_folder_of_parquet_files_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write_parquet(tmp_path / "b" / "1.parquet", text=["three"])
    write_parquet(tmp_path / "a.parquet", text=["one", "two"])
    assert read(f"parquet:{tmp_path}") == [("row 1", "one"), ("row 2", "two"), ("row 3", "three")]


def test_a_parquet_file_is_not_read_further_than_is_asked(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["one"] * 4)
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    left = documents(CorpusConfig(source=f"parquet:{tmp_path}"))
    assert next(left) == ("row 1", "one")
    with pytest.raises(UserError, match=r"Cannot read '.*b\.parquet' as Parquet"):
        list(left)


def test_a_data_set_is_streamed_by_subset_and_split(hub: str) -> None:
    assert read(hub, subset="de", split="test") == [(f"row {number}", f"de test {number - 1}") for number in (1, 2, 3)]


def test_what_a_data_set_is_asked_for_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*positional: object, **named: object) -> Any:
        asked.append((positional, named))
        return datasets.IterableDataset.from_generator(lambda: iter([{"text": "one", "title": "A"}]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("hub:some/data", subset="en", split="test", revision="v1") == [("A", "one")]
    assert asked == [(("some/data", "en"), {"split": "test", "revision": "v1", "streaming": True})]


def test_a_data_set_is_not_read_further_than_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("the line is cut")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    left = documents(CorpusConfig(source="hub:some/data"))
    assert next(left) == ("row 1", "one")
    with pytest.raises(UserError, match=r"Cannot read the data set 'some/data': the line is cut.*connection"):
        next(left)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"subset": "en", "split": "valid"}, r"Bad split: valid\. Available splits: \['train', 'test'\]\. Check"),
        ({"subset": "fr"}, r"'fr' not found\. Available: \['en', 'de'\]\. Check"),
        ({"subset": "en", "column": "body"}, r"no column 'body'; its columns: text, number\. Set corpus\.column"),
        ({"subset": "en", "column": "number"}, r"Row 1 of '.*' has int in the column 'number', not text"),
    ],
)
def test_what_a_data_set_does_not_have_is_named_with_what_it_has(hub: str, keys: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(hub, **keys)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'some/data' on the Hub (OfflineModeIsEnabled)"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'some/data' doesn't exist on the Hub\nand more"),
        datasets.exceptions.DatasetGenerationError("An error occurred"),
        RuntimeError("Dataset scripts are no longer supported, but found data.py"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"Cannot read the data set 'some/data'.*parquet:PATH") as raised:
        read("hub:some/data")
    assert str(error).partition("\n")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_library_comes_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="`pip install datasets`"):
        read("hub:some/data")


def test_a_parquet_column_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["one"], number=[1])
    with pytest.raises(UserError, match=r"a\.parquet' has no column 'body'; its columns: text, number"):
        read(f"parquet:{path}", column="body")
    with pytest.raises(UserError, match=r"Row 1 of '.*' has int in the column 'number', not text"):
        read(f"parquet:{path}", column="number")


@pytest.mark.parametrize("key", ["subset", "revision", "split", "column"])
@pytest.mark.parametrize("source", ["wheel:gensim", "text:a.txt", "jsonl:a.jsonl", "parquet:a.parquet"])
def test_a_key_that_means_nothing_to_a_source_is_an_error(source: str, key: str) -> None:
    if key in SOURCES[source.partition(":")[0]].keys:
        return
    only = "jsonl:PATH, parquet:PATH, hub:NAME" if key == "column" else "hub:NAME"
    with pytest.raises(UserError, match=f"corpus.{key} is 'x', but '{source}' has no such thing, only {only} has"):
        read(source, **{key: "x"})


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "ftp:some/data",
            r"corpus.source 'ftp:some/data'\. Known: wheel:gensim, text:PATH, jsonl:PATH, parquet:PATH, hub:NAME",
        ),
        ("jsonl:", r"Unknown corpus.source 'jsonl:'"),
        ("wheel:nltk", r"Unknown corpus.source 'wheel:nltk'.*gensim"),
        ("text:/no/such/place", r"'/no/such/place', which does not exist"),
        ("jsonl:/no/such/file", r"'/no/such/file', which does not exist"),
        ("parquet:/no/such/file", r"'/no/such/file', which does not exist"),
    ],
)
def test_a_source_that_is_none_is_named(source: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(source)


def test_a_missing_package_comes_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="`pip install gensim`"):
        read("wheel:gensim")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{no json", "line 2 of '.*' is not JSON"),
        ('{"txt": "a"}', "line 2 of '.*' has no text under the key 'text'; its keys: txt"),
        ('{"text": 3}', "line 2 of '.*' has no text"),
        ('"text"', "line 2 of '.*' has no text"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "line 2 of '.*' is not JSON: Exceeds the limit"),
        ('{"text": ' + "[" * 100_000, "line 2 of '.*' is not JSON: maximum recursion depth"),
        (r'{"text": "a \ud800 b"}', r"line 2 of '.*' holds '\\ud800', half of a character"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=says):
        read(f"jsonl:{path}")


def test_half_a_character_in_a_title_is_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"text": "one", "title": "A \udfff"}' + '\n{"text": "two", "title": null}', encoding="utf-8")
    assert read(f"jsonl:{path}") == [("A ?", "one"), ("line 2", "two")]


def test_bytes_that_are_no_utf8_in_parquet_are_named(tmp_path: Path) -> None:
    latin = pa.array([b"fine", "é".encode("latin-1")]).cast(pa.binary()).view(pa.string())
    with pytest.raises(UserError, match=r"a\.parquet' has bytes that are not UTF-8 in text or title: "):
        read(f"parquet:{write_parquet(tmp_path / 'a.parquet', text=latin, title=['A', 'B'])}")
    pq.write_table(pa.table({"text": pa.array([2**62], pa.timestamp("us"))}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"Cannot read '.*b\.parquet' as Parquet"):
        read(f"parquet:{tmp_path / 'b.parquet'}")


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
@pytest.mark.parametrize("place", ["~nobody-of-this-name/corpus", "x" * 5000])
def test_a_path_that_the_system_does_not_look_at_is_named(kind: str, place: str) -> None:
    with pytest.raises(UserError, match=r"corpus\.source names '.*, which cannot be looked at: "):
        read(f"{kind}:{place}")


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt' as UTF-8"):
        read(f"text:{tmp_path}")
