"""Reads documents one by one from files, packages or the Hub, in the source's own order."""

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from pipeline.config import CorpusConfig
from pipeline.places import place_of
from pipeline.text import wikipedia

Document = tuple[str, str]
"""Title and text."""

ROWS = 256
"""Rows of a Parquet file that are decoded at once."""

CHARACTERS = 16
"""A single text file is cut into documents of at least this many characters a token of `context_length`: a few
sequences each, of which what is left over is a small part."""

DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-*-shortened.bz2"
"""Where gensim keeps a piece of Wikipedia: about a hundred articles, nearly all with titles in A."""


class Source(NamedTuple):
    """One kind of `corpus.source`: a row of `SOURCES`."""

    place: str
    """What follows the prefix."""
    read: Callable[[str, CorpusConfig], Iterator[Document]]
    files: Callable[[str], list[Path]]
    """What it reads here, in that order."""
    streamed: bool
    """Too large to read whole: reading stops when there is enough."""
    keys: tuple[str, ...]
    """Keys of the section that mean something here; the others must be left as they are."""


def find_source(config: CorpusConfig) -> tuple[Source, str]:
    """The row of `config.source` and what follows its prefix.

    Raises UserError for an unknown source, and for keys that this kind of source does not have.
    """
    prefix, _, place = config.source.partition(":")
    if prefix not in SOURCES or not place:
        known = ", ".join(f"{name}:{row.place}" for name, row in SOURCES.items())
        raise UserError(f"Unknown corpus.source '{config.source}'. Known: {known}.")
    for key in SPECIAL:
        value = getattr(config, key)
        if value != CorpusConfig.model_fields[key].default and key not in SOURCES[prefix].keys:
            having = ", ".join(f"{name}:{row.place}" for name, row in SOURCES.items() if key in row.keys)
            raise UserError(
                f"corpus.{key} is '{value}', but '{config.source}' has no such thing, only {having} has:"
                " remove the key."
            )
    return SOURCES[prefix], place


def documents(config: CorpusConfig) -> Iterator[Document]:
    """Titles and texts; a document without a title is called by its number.

    Raises UserError, at once or on the way, for an unknown or unreadable source and for a document without text.
    """
    source, place = find_source(config)
    return source.read(place, config)


def _from_wheel(package: str, _config: CorpusConfig) -> Iterator[Document]:
    (dump,) = _dump(package)
    return wikipedia.articles(dump)


def _dump(package: str) -> list[Path]:
    if package != "gensim":
        raise UserError(f"Unknown corpus.source 'wheel:{package}'. The one known package with text is gensim.")
    spec = importlib.util.find_spec(package)  # finds the package without running it
    folders = (spec and spec.submodule_search_locations) or []
    dump = next((file for folder in folders for file in Path(folder).glob(DUMP)), None)
    if dump is None:
        raise UserError(f"The package '{package}' of corpus.source is not installed: run `pip install {package}`.")
    return [dump]


def _from_text(place: str, config: CorpusConfig) -> Iterator[Document]:
    path = _existing(place)
    if path.is_dir():
        yield from ((_written(file.stem), _read(file)) for file in _files(place, "txt"))
        return
    least = CHARACTERS * config.context_length
    parts = list(_parts(_read(path), least))
    if len(parts) < 2:
        raise UserError(
            f"The file '{place}' gives {len(parts)} documents, and a corpus needs two or more: it is cut at blank lines"
            f" into documents of {least:,} characters or more ({CHARACTERS} a token of corpus.context_length). Put"
            " blank lines between its paragraphs, give it more text, or name a folder of .txt files."
        )
    for number, part in enumerate(parts, start=1):
        yield f"{_written(path.stem)} {number}", part


def _parts(text: str, least: int) -> Iterator[str]:
    """The text, cut at the first blank line after every `least` characters."""
    start = 0
    for gap in re.finditer(r"\n\s*\n", text):
        if gap.start() - start >= least:
            yield text[start : gap.start()]
            start = gap.end()
    if rest := text[start:].strip():
        yield rest


def _from_jsonl(place: str, config: CorpusConfig) -> Iterator[Document]:
    for number, line in enumerate(_read(_existing(place)).split("\n"), start=1):
        if line.strip():
            yield _of_line(line, f"line {number} of '{place}'", f"line {number}", config.column)


def _of_line(line: str, where: str, title: str, column: str) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        reason = getattr(error, "msg", error)
        raise UserError(f"{where} is not JSON: {reason}. A jsonl corpus has one JSON object a line.") from error
    if not isinstance(record, dict) or not isinstance(record.get(column), str):
        keys = f"; its keys: {', '.join(record)}" if isinstance(record, dict) else ""
        raise UserError(
            f"{where} has no text under the key '{column}'{keys}. A jsonl corpus has one there on every line:"
            " mend the line or set corpus.column."
        )
    return _written(str(record.get("title") or title)), _text(record[column], where)


def _from_parquet(place: str, config: CorpusConfig) -> Iterator[Document]:
    return _of_rows(_parquet_rows(place, config), place, config)


def _parquet_rows(place: str, config: CorpusConfig) -> Iterator[Mapping[str, Any]]:
    for path in _files(place, "parquet"):
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                _check_column(names, str(path), config)
                wanted = [name for name in dict.fromkeys((config.column, "title")) if name in names]
                for batch in file.iter_batches(ROWS, columns=wanted):
                    yield from batch.to_pylist()
        except UnicodeDecodeError as error:
            raise UserError(
                f"'{path}' has bytes that are not UTF-8 in {' or '.join(wanted)}: {error.reason}. Convert it or name"
                " another file."
            ) from error
        except (OSError, OverflowError, ValueError, pa.ArrowException) as error:
            raise UserError(f"Cannot read '{path}' as Parquet: {_first_line(error)}. Name another file.") from error


def _from_hub(place: str, config: CorpusConfig) -> Iterator[Document]:
    return _of_rows(_hub_rows(place, config), place, config)


def _hub_rows(place: str, config: CorpusConfig) -> Iterator[Mapping[str, Any]]:
    try:
        datasets = importlib.import_module("datasets")  # takes seconds to import
    except ImportError as error:
        raise UserError(
            f"corpus.source '{config.source}' needs the package datasets: run `pip install datasets`."
        ) from error
    with _explained(place, datasets.exceptions.DatasetsError):
        rows = datasets.load_dataset(place, config.subset, split=config.split, revision=config.revision, streaming=True)
        for row in rows:
            _check_column(list(row), place, config)
            yield row


@contextmanager
def _explained(place: str, own: type[Exception]) -> Iterator[None]:
    """Say in one sentence what went wrong with a data set, at its start or in the midst of it; `own` are the library's.

    RuntimeError is how it refuses a data set that is a script.
    """
    expected: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, httpx.HTTPError, own)
    try:
        yield
    except expected as error:
        raise UserError(
            f"Cannot read the data set '{place}': {_first_line(error)}. Check corpus.source, subset, split and"
            " revision, and the connection; or download it and use parquet:PATH or jsonl:PATH."
        ) from error


def _of_rows(rows: Iterable[Mapping[str, Any]], place: str, config: CorpusConfig) -> Iterator[Document]:
    """Rows without text are left out, but counted."""
    for number, row in enumerate(rows, start=1):
        text, title = row[config.column], row.get("title")
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(
                f"Row {number} of '{place}' has {type(text).__name__} in the column '{config.column}', not text:"
                " set corpus.column to one that has."
            )
        where = f"row {number}"
        yield (_written(title) if isinstance(title, str) and title else where), _text(text, f"{where} of '{place}'")


def _text(text: str, where: str) -> str:
    """A document's text without the byte order mark that it may begin with. Raises UserError for what is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start : error.end]
        raise UserError(f"{where} holds {found!r}, half of a character (a surrogate): mend the text.") from error
    return text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")


def _written(title: str) -> str:
    """A title that can be written: half of a character becomes a question mark."""
    return title.encode(errors="replace").decode()


def _check_column(names: list[str], place: str, config: CorpusConfig) -> None:
    if config.column not in names:
        raise UserError(
            f"'{place}' has no column '{config.column}'; its columns: {', '.join(names)}. Set corpus.column."
        )


def _files(place: str, ending: str) -> list[Path]:
    """The file itself, or all files with that ending in a folder and its folders, by name."""
    path = _existing(place)
    if not path.is_dir():
        return [path]
    walked = os.walk(path, onerror=_unreadable)
    return sorted(Path(folder, name) for folder, _, names in walked for name in names if name.endswith(f".{ending}"))


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"Cannot look into the folder '{error.filename}' of corpus.source: {error.strerror}. Make it readable or name"
        " another folder."
    ) from error


def _hub_files(place: str) -> list[Path]:
    """None, but the library takes a folder in a data set's place."""
    return sorted(path for path in Path(place).rglob("*") if path.is_file()) if Path(place).is_dir() else []


def _existing(place: str) -> Path:
    path = place_of(place, "corpus.source")
    if not path.exists():
        raise UserError(f"corpus.source names '{place}', which does not exist. Give it the path of a file or folder.")
    return path


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read '{file}' as UTF-8 text: {error}. Convert it or name another file.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")


SPECIAL = ("column", "subset", "split", "revision")
"""Keys of the section that only some sources have."""

SOURCES: dict[str, Source] = {
    "wheel": Source("gensim", _from_wheel, _dump, streamed=False, keys=()),
    "text": Source("PATH", _from_text, partial(_files, ending="txt"), streamed=False, keys=()),
    "jsonl": Source("PATH", _from_jsonl, partial(_files, ending="jsonl"), streamed=False, keys=("column",)),
    "parquet": Source("PATH", _from_parquet, partial(_files, ending="parquet"), streamed=True, keys=("column",)),
    "hub": Source("NAME", _from_hub, _hub_files, streamed=True, keys=SPECIAL),
}
"""Prefix of `corpus.source`: what follows it, and who reads it."""
