"""What stages leave on disk: a folder each, named by the hash of all it depends on, complete as soon as it exists."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.errors import LineupError

TIMING = "timing.json"

FORMATS = {"latents": 2, "losses": 3}
"""Stages whose files have changed since they were first made; a row counts up, so that no run takes an older one's."""


@dataclass(frozen=True)
class Artefacts:
    """The artefacts of one study, all under `root`."""

    root: Path
    hardware: str
    made: list[str] = field(default_factory=list)
    """Stages whose artefacts this run made, in order."""

    def path(self, stage: str, inputs: Any) -> Path:
        """Where the artefact of a stage with these inputs (anything JSON can hold) is, or will be."""
        if stage in FORMATS:
            inputs = {"format": FORMATS[stage], "inputs": inputs}
        return self.root / f"{stage}-{digest(inputs)}"

    def remove(self, stage: str, inputs: Any) -> None:
        """Delete the artefact, where there is one."""
        shutil.rmtree(self.path(stage, inputs), ignore_errors=True)

    def make(self, stage: str, inputs: Any, build: Callable[[Path], int | None], *, keep_partial: bool = False) -> Path:
        """The folder that `build` fills: found if an earlier run finished it, otherwise made now.

        `build` gets a folder that is renamed only when it returns, so a killed run leaves no half artefact;
        it may return the number of tokens it worked on. With `keep_partial` it finds what a killed attempt left
        there and goes on from that. Raises LineupError when the disk is full.
        """
        folder = self.path(stage, inputs)
        if folder.exists():
            return folder
        partial = folder.with_name(folder.name + ".partial")
        if not keep_partial:
            shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            tokens = build(partial)
            self._note_time(partial, time.monotonic() - started, tokens)
            partial.rename(folder)
            self.made.append(stage)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise LineupError(
                f"Cannot write '{partial}': {reason}. What is finished is kept:"
                " make room, then run the same command again."
            ) from error
        return folder

    def _note_time(self, folder: Path, seconds: float, tokens: int | None) -> None:
        note = {"seconds": round(seconds, 3), "tokens": tokens, "hardware": self.hardware}
        (folder / TIMING).write_text(json.dumps(note), encoding="utf-8")


def timing(folder: Path) -> dict[str, Any]:
    """Seconds, tokens and hardware of the run that finished the artefact."""
    note: dict[str, Any] = json.loads((folder / TIMING).read_text(encoding="utf-8"))
    return note


def digest(inputs: Any) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of the inputs' canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
