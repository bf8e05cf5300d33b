"""Reads the progress.json that a run replaces while it goes on."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from core.errors import without_folders

STALE_SECONDS = 60.0
"""A running study writes more often than this; one that does not has been stopped."""

Phase = Literal["running", "stopped", "done", "failed"]


class _Report(BaseModel):
    model_config = ConfigDict(extra="ignore")

    state: Phase
    updated: float
    study: str = ""
    title: str = ""
    stage: str = ""
    label: str = ""
    done: float = 0
    total: float = 0
    unit: str = ""
    rate: float | None = None
    stage_seconds_left: float | None = None
    seconds_elapsed: float | None = None
    seconds_left: float | None = None
    error: str | None = None
    finished_saes: int = 0
    planned_saes: int = 0

    @field_validator("label", "error")
    @classmethod
    def _for_pages(cls, value: str | None) -> str | None:
        return without_folders(value) if value else value


@dataclass(frozen=True)
class Progress:
    """A report, and what it means by now."""

    report: _Report
    phase: Phase
    silent_seconds: float

    @property
    def building(self) -> bool:
        """Whether a page should say something: every phase but done."""
        return self.phase != "done"

    @property
    def share(self) -> float | None:
        """Share of the stage that is done, 0 to 1."""
        if self.report.total <= 0:
            return None
        return min(1.0, max(0.0, self.report.done / self.report.total))


def read_progress(path: Path, now: float | None = None) -> Progress | None:
    """Read a progress file; None when there is none, or when it is not one."""
    try:
        report = _Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    silent = max(0.0, (time.time() if now is None else now) - report.updated)
    phase: Phase = report.state
    if phase == "running" and silent > STALE_SECONDS:
        phase = "stopped"
    return Progress(report, phase, silent)
