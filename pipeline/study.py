"""Runs a study: its models one after another, each stage of each in order, while the database grows.

Every stage leaves an artefact under the hash of what it depends on, so a run that was killed anywhere goes on from
there, and a finished one is only looked at. What the stages are is the table in `stages.py`.
"""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TextIO

from pipeline import autointerp, hardware
from pipeline.artefacts import Artefacts
from pipeline.checks import check_names, check_tools
from pipeline.config import ModelConfig, Study
from pipeline.database import Finished, publish
from pipeline.executors import Executor, Maker, run_in_order
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.session import alone, end_told
from pipeline.stages import Task, tasks_of


def run_study(study: Study, runs: Path, terminal: TextIO | None = None, execute: Executor = run_in_order) -> Path:
    """Run what is missing of a study and give its database, `runs/<name>.duckdb`.

    Raises UserError for whatever the user can mend, BrokenError for anything else; what is finished is kept.
    """
    check_names(study)
    check_tools(study)
    folder, database = runs / study.name, runs / f"{study.name}.duckdb"
    with alone(folder):
        artefacts = Artefacts(folder, hardware.describe(), lambda sentence: progress.note(sentence))
        finished = Finished(study, artefacts)
        progress = Progress(folder / "progress.json", study.name, study.title, finished.planned, terminal or sys.stderr)
        with end_told(progress, folder):
            with _client(finished) as client:
                for config in study.models:
                    _run_model(config, client, finished, progress, database, execute)
            publish(finished, progress, database, complete=True)
    return database


def _run_model(
    config: ModelConfig,
    client: autointerp.Client | None,
    finished: Finished,
    progress: Progress,
    database: Path,
    execute: Executor,
) -> None:
    """All stages of one model, which is in memory meanwhile."""
    model, bench = prepare(finished.study, config, finished.models, finished.artefacts, progress, client)
    tasks = tasks_of(model)
    finished.begin(model, tasks)

    def done(task: Task) -> None:
        finished.done.add(task)
        publish(finished, progress, database)

    execute(tasks, Maker(tasks, bench, progress, done))


@contextmanager
def _client(finished: Finished) -> Iterator[autointerp.Client | None]:
    """The language model, where the study asks one; its answers are kept beside the artefacts."""
    config = finished.study.autointerp
    if not autointerp.needs_llm(config):
        yield None
        return
    root = finished.artefacts.root
    with closing(autointerp.make_client(config.llm, root / "answers", root.parent / "models")) as client:
        if client.damaged:
            finished.artefacts.say(f"{client.damaged} of the kept answers are damaged: they are asked for again.")
        yield client
