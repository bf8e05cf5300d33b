"""What a source of text holds, wherever it lies: the part of a corpus's key that depends on files."""

from importlib import metadata
from pathlib import Path
from typing import Any

from core.errors import UserError
from pipeline import hub
from pipeline.config import CorpusConfig
from pipeline.manifest import file_sha256
from pipeline.places import place_of
from pipeline.text.documents import find_source


def contents(config: CorpusConfig) -> dict[str, Any]:
    """The kind of source, and name and SHA-256 of every file in the order in which they are read.

    Of a data set of the Hub, its name and the commit that it is at. Raises UserError for what cannot be read.
    """
    source, place = find_source(config)
    root = place_of(place, "corpus.source")
    found: dict[str, Any] = {"kind": config.source.partition(":")[0]}
    found["files"] = [_named(path, root) for path in source.files(place)]
    if found["kind"] == "hub" and not found["files"]:
        found |= {"name": place, "commit": hub.commit(place, "dataset", config.revision)}
    if found["kind"] == "wheel":
        found["version"] = metadata.version(place)  # which turns the markup to prose
    return found


def _named(path: Path, root: Path) -> tuple[str, str]:
    name = str(path.relative_to(root)) if path != root and path.is_relative_to(root) else path.name
    try:
        return name, file_sha256(path)
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror}. Name another file.") from error
