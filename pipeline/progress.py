"""Shows on the terminal, and in `progress.json` for the dashboard, where a run stands."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

Advance = Callable[[int, int], None]
"""Called with (units done, units in all) while a stage works."""

REFRESH_SECONDS = 0.5


class Progress:
    """Writes the state of the run at most twice a second, replacing the file as a whole.

    Where neither file nor terminal can be written to, because the disk is full, the run goes on without.
    """

    def __init__(self, path: Path, study: str, title: str, planned_saes: int, terminal: TextIO) -> None:
        self._path = path
        self._terminal = terminal
        self._started = time.monotonic()
        self._shown = 0.0
        self._state: dict[str, object] = {
            "study": study, "title": title, "state": "running", "stage": "", "label": "starting", "done": 0, "total": 0,
            "unit": "", "rate": None, "stage_seconds_left": None, "seconds_elapsed": 0.0, "seconds_left": None,
            "pid": os.getpid(), "error": None, "finished_saes": 0, "planned_saes": planned_saes,
        }  # fmt: skip
        self._write()

    @contextmanager
    def stage(self, stage: str, label: str, unit: str = "tokens") -> Iterator[Advance]:
        """A stage of the run; gives the function that the stage calls to say how far it is."""
        started = time.monotonic()
        self._set(stage=stage, label=label, unit=unit, done=0, total=0, rate=None, stage_seconds_left=None)

        def advance(done: int, total: int) -> None:
            seconds = time.monotonic() - started
            rate = done / seconds if seconds > 0 else 0.0
            left = (total - done) / rate if rate else None
            self._state.update(done=done, total=total, rate=rate, stage_seconds_left=left)
            if time.monotonic() - self._shown > REFRESH_SECONDS:
                self._show()

        yield advance
        self._line(f"{label}: {time.monotonic() - started:.1f} s", end="\n")

    def note(self, sentence: str) -> None:
        """Something to know about what was made or found, for the terminal."""
        self._line(sentence, end="\n")

    def finished_sae(self, count: int, planned: int, fresh: int) -> None:
        """`count` of `planned` SAEs have their latents in the database, `fresh` of them made by this run."""
        elapsed = time.monotonic() - self._started
        self._set(finished_saes=count, seconds_left=elapsed / fresh * (planned - count) if fresh else None)

    def done(self) -> None:
        """The study is complete."""
        self._set(state="done", label="complete", stage="", rate=None, stage_seconds_left=None, seconds_left=0.0)

    def stopped(self) -> None:
        """The run was told to end before it was complete."""
        self._set(state="stopped", rate=None, stage_seconds_left=None, seconds_left=None)

    def failed(self, sentence: str) -> None:
        """The run ended with an error."""
        self._set(state="failed", error=sentence.encode(errors="backslashreplace").decode())

    def _set(self, **changes: object) -> None:
        self._state.update(changes)
        self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._state["seconds_elapsed"] = round(self._shown - self._started, 1)
        self._write()
        if self._state["rate"] and self._terminal.isatty():
            self._line(self._sentence(), end="\r")

    def _sentence(self) -> str:
        state = self._state
        left = state["stage_seconds_left"]
        remaining = f", {left:.0f} s left" if isinstance(left, float) else ""
        amount = f"{state['done']:,} of {state['total']:,} {state['unit']}"
        return f"{state['label']}: {amount}, {state['rate']:,.0f}/s{remaining}"

    def _line(self, text: str, end: str) -> None:
        clear = "\x1b[K" if self._terminal.isatty() else ""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        with suppress(OSError):
            self._terminal.write(f"{clear}[{minutes:02d}:{seconds:02d}] {text}{end}")
            self._terminal.flush()

    def _write(self) -> None:
        state = json.dumps(self._state | {"updated": time.time()}).encode()
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(state)
            partial.replace(self._path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
                with self._path.open("r+b", buffering=0) as file:  # the old state's own room may do for the new one
                    file.write(state)
                    file.truncate()
