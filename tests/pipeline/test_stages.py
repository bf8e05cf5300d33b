"""The table of stages, the tasks that follow from it, and that any order of them gives the same study."""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from pipeline import database, stages
from pipeline.artefacts import Artefacts
from pipeline.config import Study, load_study
from pipeline.executors import Make, run_in_order
from pipeline.models.load import ModelInfo
from pipeline.plan import work
from pipeline.progress import Advance, Progress
from pipeline.runs import ModelRun
from pipeline.stages import STAGES, Stage, Task, tasks_of
from pipeline.study import run_study
from tests.pipeline.damage import small_study
from tests.pipeline.studies_for_tests import differing, query


def test_every_name_is_there_once_and_every_need_before() -> None:
    known: list[Stage] = []
    for row in stages._ROWS:
        assert row.name not in [stage.name for stage in known]
        needs = [stage for stage in known if stage.name in row.needs]
        assert {stage.name for stage in needs} == set(row.needs)  # so the table is acyclic
        assert all(stage.build for stage in needs)
        known.append(row)
    assert list(STAGES) == [row.name for row in known]


ASKED: dict[str, Any] = {
    "name": "toy",
    "variants": ["trained", "control", "permuted"],
    "variant_seeds": 2,
    "sae_seeds": 3,
    "layers": [0, 2],
    "hooks": ["resid_post", "mlp_out"],
    "saes": [{"k": 4}, {"architecture": "pca", "k": 4}],
    "autointerp": {"scorers": ["detection", "embedding"]},
}


def all_tasks(folder: Path, **changes: Any) -> list[Task]:
    """Of a study along every axis, without its model."""
    study = Study.model_validate(ASKED | changes)
    info = ModelInfo("toy", "folder:toy", "LlamaForCausalLM", 3, 32, 400, 1000, "")
    kept, base = Artefacts(folder, "here"), {"precision": "float32"}
    return tasks_of(ModelRun(study, study.models[0], kept, info, (0, 2), [], "", {}, base))


def test_tasks_come_once_each_after_what_it_needs_and_share_no_folder(tmp_path: Path) -> None:
    tasks = all_tasks(tmp_path)
    before: set[Task] = set()
    for task in tasks:
        assert before.issuperset(task.needs)
        assert task not in before
        before.add(task)
    assert {task.stage.name for task in tasks} == {name for name, stage in STAGES.items() if stage.build}
    assert len({task.path for task in tasks}) == len(tasks)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("match", "matched"), [("all", 2 + 2 * 2), ("trained", 4)])
def test_pairs_are_counterparts_and_seeds(match: str, matched: int, order: int, tmp_path: Path) -> None:
    """Five variants, listed in either order: the trained one, and two others drawn twice and matched within a draw."""
    tasks = all_tasks(tmp_path, collect={"match": match}, variants=ASKED["variants"][::order])
    places = 2 * 2 * (3 + 1)  # layers, hooks, SAEs with their seeds
    of = {name: [task.run for task in tasks if task.stage.name == name] for name in STAGES}
    assert len(of["matches"]) == matched * places
    assert len(of["specifications"]) == 4 * places
    assert len(of["stability"]) == 5 * 2 * 2 * 3
    assert all(pair.earlier.variant.name == "trained" for pair in of["specifications"])
    assert all(pair.sae.seed != pair.earlier.seed for pair in of["stability"])


def test_a_stage_that_is_not_asked_for_has_no_task(tmp_path: Path) -> None:
    asked = {"autointerp": {"specifications": {"latents": 0}}, "sae_seeds": 1}
    names = {task.stage.name for task in all_tasks(tmp_path, **asked)}
    assert names.isdisjoint({"sampled", "specifications", "stability"})


class Backwards:
    """Makes the last of the tasks that are ready, and looks at the database after each."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.order: list[Task] = []

    def __call__(self, tasks: Sequence[Task], make: Make) -> None:
        waiting = list(tasks)
        while waiting:
            ready = [task for task in waiting if set(self.order).issuperset(task.needs)]
            make(ready[-1])
            waiting.remove(ready[-1])
            self.order.append(ready[-1])
            if self.database.exists():
                self.look(tasks)

    def look(self, tasks: Sequence[Task]) -> None:
        """The database has the SAEs all of whose own stages are made, and nothing of others."""
        wanting = {task.run for task in tasks if task.stage.scope == "sae" and task not in self.order}
        every = list(dict.fromkeys(task.run for task in tasks if task.stage.scope == "sae"))
        numbers = {number for number, sae in enumerate(every) if sae not in wanting}
        assert {row[0] for row in query(self.database, "SELECT sae FROM saes")} == numbers
        for table, columns in {"scores": ["sae"], "matches": ["sae", "other_sae"], "timings": ["sae"]}.items():
            for column in columns:
                found = query(self.database, f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL")
                assert {row[0] for row in found} <= numbers
        twins = {task.run: task.run.saes for task in tasks if task.stage.name == "stability"}
        waiting = {sae for task in tasks if task.run in twins and task not in self.order for sae in twins[task.run]}
        known = query(self.database, "SELECT sae FROM sae_metrics WHERE metric = 'seed_stability'")
        assert waiting.isdisjoint({every[number] for (number,) in known})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Every kind of stage but a sample."""
    return load_study(small_study(tmp_path, variants=["trained", "control", "permuted"]))


def test_another_order_gives_the_same_database(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = run_study(study, tmp_path / "forward", io.StringIO())
    monkeypatch.setattr(database, "FEWEST_SECONDS", 0)
    monkeypatch.setattr(database, "SHARE", 1e9)  # it is written whenever there is something new
    backwards = Backwards(tmp_path / "backwards" / "toy.duckdb")
    other = run_study(study, tmp_path / "backwards", io.StringIO(), backwards)
    names = [task.stage.name for task in backwards.order]
    assert names.index("activations") > names.index("variant") + 1
    assert [a for a, b in combinations(backwards.order, 2) if a in b.needs]
    assert differing(forward, other) == []
    folders = [{path.name for path in (tmp_path / run / "toy").iterdir()} for run in ("forward", "backwards")]
    assert folders[0] == folders[1]
    said = io.StringIO()
    run_study(study, tmp_path / "backwards", said)
    assert not any(stage.label in said.getvalue() for stage in STAGES.values() if stage.build)


def test_activations_are_made_only_where_something_is_missing_and_never_stay(study: Study, tmp_path: Path) -> None:
    def executor(seen: list[str]) -> Any:
        def execute(tasks: Sequence[Task], make: Make) -> None:
            def watched(task: Task) -> None:
                make(task)
                seen.extend(path.name.partition("-")[0] for path in (tmp_path / "toy").glob("activations-*"))

            run_in_order(tasks, watched)

        return execute

    seen: list[str] = []
    database = run_study(study, tmp_path, io.StringIO(), executor(seen))
    assert seen
    assert not list((tmp_path / "toy").glob("activations-*"))
    again: list[str] = []
    run_study(study, tmp_path, io.StringIO(), executor(again))
    assert again == []
    ((stage, count),) = query(database, "SELECT stage, count(*) FROM timings WHERE stage = 'activations' GROUP BY ALL")
    assert (stage, count) == ("activations", 3)


def test_progress_timings_and_plan_call_a_stage_by_its_name(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, str]] = []
    stage = Progress.stage

    def spy(self: Progress, name: str, label: str, unit: str = "") -> AbstractContextManager[Advance]:
        shown.append((name, unit))
        return stage(self, name, label, unit)

    monkeypatch.setattr(Progress, "stage", spy)
    path = run_study(study, tmp_path, io.StringIO())
    assert dict(shown) == {name: row.unit for name, row in STAGES.items() if name != "sampled"}
    timed = {row[0] for row in query(path, "SELECT DISTINCT stage FROM timings")}
    assert timed == {name for name, row in STAGES.items() if row.build and name != "sampled"}
    assert {row.name for row in work.STAGES} <= STAGES.keys()
