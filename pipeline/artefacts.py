"""Folders that stages leave on disk, each named by the hash of all it depends on, complete as soon as it exists."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from core.files import writing
from pipeline import manifest

TIMING = "timing.json"

FORMATS = {"latents": 3, "losses": 3}
"""Stages whose files have changed since they were first made; a row counts up, so that no run takes an older one's."""


@dataclass(frozen=True)
class Artefacts:
    """The artefacts of one study, all under `root`."""

    root: Path
    hardware: str
    say: Callable[[str], None] = field(default=lambda _: None)
    """Is told in a sentence what is damaged."""
    made: list[str] = field(default_factory=list)
    """Stages whose artefacts this run made, in order."""
    _whole: dict[str, str] = field(default_factory=dict)
    """Content of the artefacts that this run made, or found and checked, by their names."""

    def path(self, stage: str, inputs: Any) -> Path:
        """Where the artefact of a stage with these inputs (anything JSON can hold) is, or will be."""
        if stage in FORMATS:
            inputs = {"format": FORMATS[stage], "inputs": inputs}
        return self.root / f"{stage}-{digest(inputs)}"

    def remove(self, stage: str, inputs: Any) -> None:
        """Delete the artefact, where there is one."""
        folder = self.path(stage, inputs)
        self._whole.pop(folder.name, None)
        shutil.rmtree(folder, ignore_errors=True)

    def has(self, stage: str, inputs: Any, sources: Sequence[Path] = ()) -> bool:
        """Whether an earlier run finished the artefact and every byte is as it was, which is looked at once in a run.

        One that is damaged, or was made from other content than its sources have now, is deleted, and that is said.
        """
        folder = self.path(stage, inputs)
        if not folder.exists():
            return False
        if folder.name not in self._whole:
            with writing(folder):
                wrong = manifest.damage(folder, self._contents(sources))
                if wrong:
                    self.say(f"{folder.name} {wrong}: it is made again.")
                    shutil.rmtree(folder)
                    return False
            self._whole[folder.name] = manifest.content(folder)
        return True

    def make(
        self,
        stage: str,
        inputs: Any,
        build: Callable[[Path], int | None],
        *,
        keep_partial: bool = False,
        sources: Sequence[Path] = (),
    ) -> Path:
        """The folder that `build` fills: found if an earlier run finished it, otherwise made now.

        `build` gets a folder that is renamed only when it returns, so a killed run leaves no half artefact;
        it may return the number of tokens it worked on. With `keep_partial` it finds the files there that a killed
        attempt noted, and goes on from those. `sources` are the artefacts that this one is made from, where they
        stay. Raises UserError when the disk is full.
        """
        folder = self.path(stage, inputs)
        if self.has(stage, inputs, sources):
            return folder
        partial = folder.with_name(folder.name + ".partial")
        try:
            with writing(partial, SafetensorError):
                self._start(partial, keep_partial)
                started = time.monotonic()
                tokens = build(partial)
                self._note_time(partial, time.monotonic() - started, tokens)
                manifest.seal(partial, folder, self._contents(sources))
        finally:
            if not keep_partial:
                shutil.rmtree(partial, ignore_errors=True)
        self._whole[folder.name] = manifest.content(folder)
        self.made.append(stage)
        return folder

    def _start(self, partial: Path, keep: bool) -> None:
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        if keep and not manifest.keep_noted(partial):
            self.say(f"{partial.name} is damaged: what does not fit is made again.")

    def _contents(self, sources: Sequence[Path]) -> dict[str, str]:
        return {folder.name: self._whole[folder.name] for folder in sources}

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
