"""Where tasks are made: one after another in this process. Another executor gets the same tasks and the same `make`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from pipeline.builds import Bench, Work
from pipeline.progress import Progress
from pipeline.stages import Task

Make: TypeAlias = Callable[[Task], None]
"""Makes a task, or finds that it is there; to be called once for each, when all that it needs is made."""

Executor: TypeAlias = Callable[[Sequence[Task], Make], None]
"""Calls `make` for every task, in an order in which each comes after what it needs."""


def run_in_order(tasks: Sequence[Task], make: Make) -> None:
    """Make the tasks as they come, so that one variant's model and one SAE's codes are in memory at a time."""
    for task in tasks:
        make(task)


class Maker:
    """Makes the tasks of one model, whoever orders them."""

    def __init__(self, tasks: Sequence[Task], bench: Bench, progress: Progress, done: Make) -> None:
        self._bench = bench
        self._progress = progress
        self._done = done
        self._users: dict[Task, list[Task]] = {task: [] for task in tasks if not task.stage.kept}
        """What needs an artefact that does not stay, and is not done yet."""
        for task in tasks:
            for need in task.needs:
                if need in self._users:
                    self._users[need].append(task)

    def __call__(self, task: Task) -> None:
        """Make the task, unless it does not stay and nothing is left to be made from it; then call `done`."""
        if task.stage.kept or any(map(_is_missing, self._users[task])):
            make(task, self._bench, self._progress)
        for need in task.needs:
            if need in self._users:
                self._users[need].remove(task)
                if not self._users[need]:
                    task.run.model.artefacts.remove(need.stage.name, need.key)
        self._done(task)


def make(task: Task, bench: Bench, progress: Progress) -> None:
    """Find the task's artefact or fill its folder; all that it needs is there."""
    stage, artefacts = task.stage, task.run.model.artefacts
    if stage.build is None:
        return
    fill = stage.build
    found: dict[str, list[Path]] = {}
    for need in task.needs:
        found.setdefault(need.stage.name, []).append(need.path)

    def build(folder: Path) -> int | None:
        with progress.stage(stage.name, task.label, stage.unit) as advance:
            return fill(task.run, Work(found, bench, folder, advance))

    if stage.unfinished and (task.path / stage.unfinished).exists():
        artefacts.remove(stage.name, task.key)
    artefacts.make(stage.name, task.key, build, keep_partial=stage.keep_partial, sources=_sources(task))


def _is_missing(task: Task) -> bool:
    """Whether the task is to be made: it is not there, or something that stays and that it is made from is not."""
    missing = any(_is_missing(need) for need in task.needs if need.stage.kept)
    return missing or not task.run.model.artefacts.has(task.stage.name, task.key, _sources(task))


def _sources(task: Task) -> list[Path]:
    return [need.path for need in task.needs if need.stage.kept]
