"""What a finished folder holds: size and hash of every file, and its sources, in a file that is written last.

So it can be told later whether the folder still holds what it held.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from core.files import flush

NAME = "manifest.txt"
FROM = "from "
"""How the lines begin that say what the folder was made from."""
NAMED = 3
"""Files of a damaged folder that are named."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note(path: Path) -> None:
    """Note a complete file of a folder that is not complete, so that `keep_noted` keeps it."""
    with (path.parent / NAME).open("a", encoding="utf-8") as manifest:
        manifest.write(_line(path) + "\n")


def keep_noted(folder: Path) -> bool:
    """Delete what an interrupted run left in a folder, but for the files that are as noted; False if one was not."""
    noted = _lines(folder)
    kept = {path.name: _line(path) for path in _files(folder) if noted.get(path.name) == _line(path)}
    for path in _files(folder):
        if path.name not in kept:
            path.unlink()
    _write(folder, kept.values())
    return kept == noted


def seal(partial: Path, folder: Path, sources: Mapping[str, str]) -> None:
    """Note what a finished folder holds, bring it to the disk, and only then give it its name.

    `sources` has the names of the folders that it was made from, and the `content` of each.
    """
    noted, files = _lines(partial), _files(partial)
    _write(partial, [*_from(sources).values(), *(noted.get(path.name) or _line(path) for path in files)])
    for path in (*files, partial / NAME, partial):
        flush(path)
    partial.rename(folder)
    flush(folder.parent)


def damage(folder: Path, sources: Mapping[str, str]) -> str:
    """What is wrong with a finished folder, such as `is damaged ('cfg.json')`; nothing if it is as it was.

    Also wrong is one that was made from other content than its `sources` have now.
    """
    if not (folder / NAME).is_file():
        return f"is damaged, or of an older version: it has no {NAME}"
    noted, found = _lines(folder), {path.name: _line(path) for path in _files(folder)}
    files = {name: line for name, line in noted.items() if not line.startswith(FROM)}
    wrong = sorted(name for name in files.keys() | found.keys() if files.get(name) != found.get(name))
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        return f"is damaged ({', '.join(map(ascii, wrong[:NAMED]))}{more})"
    for name, line in _from(sources).items():
        if noted.get(name, line) != line:
            return f"was made from another {name} than there is now"
    return ""


def content(folder: Path) -> str:
    """Hash of what a finished folder holds; notes on the work, such as its time, are in JSON files and do not count."""
    lines = [line for line in _lines(folder).values() if not line.startswith(FROM) and not line.endswith(".json")]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _from(sources: Mapping[str, str]) -> dict[str, str]:
    return {name: f"{FROM}{sources[name]} {name}" for name in sorted(sources)}


def _files(folder: Path) -> list[Path]:
    """All that lies in a folder, by name, but for the note and what systems hide there."""
    return sorted(path for path in folder.iterdir() if path.name != NAME and not path.name.startswith("."))


def _line(path: Path) -> str:
    try:
        return f"{file_sha256(path)} {path.stat().st_size} {path.name}"
    except OSError as error:  # a bad sector is damage, as is a folder in a file's place
        return f"{error.strerror}: {path.name}"


def _lines(folder: Path) -> dict[str, str]:
    """The noted lines, by the names at their ends; damaged ones fit no file."""
    path = folder / NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {line.rpartition(" ")[2]: line for line in text.removesuffix("\n").split("\n") if text}


def _write(folder: Path, lines: Iterable[str]) -> None:
    (folder / NAME).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
