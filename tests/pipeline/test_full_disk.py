"""A study whose disk is full ends in one sentence, and goes on when there is room: a few trials of `full_disk.py`."""

import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pipeline.damage import asking, small_study
from tests.pipeline.full_disk import in_own_mounts, possible, run, wrong
from tests.pipeline.llm_server import running
from tests.pipeline.studies_for_tests import differing


@contextmanager
def limit_of(size: int) -> Iterator[None]:
    """No file may have more bytes: writes fail as they do on a full disk, half-way through a file, and need no root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_at_every_stage_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with running() as server:
        study = small_study(tmp_path, **asking(server))
        assert run(study, tmp_path / "undisturbed")[0] == 0
        reached = []
        for size in (5_000, 5_001, 100_000, 1_000_000):
            with limit_of(size):
                status, said = run(study, tmp_path / "runs")
            assert wrong(status, said, tmp_path / "runs") == "", size
            reached.append(said.rpartition("Cannot write '")[2].partition("'")[0].removeprefix(str(tmp_path / "runs")))
            shutil.copytree(tmp_path / "undisturbed" / "models", tmp_path / "runs" / "models", dirs_exist_ok=True)
        assert run(study, tmp_path / "runs")[0] == 0
    assert differing(tmp_path / "undisturbed" / "toy.duckdb", tmp_path / "runs" / "toy.duckdb") == []
    kinds = [re.sub("-[0-9a-f]{16}", "", path) for path in reached]
    assert kinds == ["/models/toy-gguf-1.2.partial", "/toy/corpus.partial", "/toy/activations.partial", "/toy.duckdb"]


@pytest.mark.skipif(not possible(), reason="this user may not mount a file system")
def test_a_disk_of_any_size_is_full_in_one_sentence() -> None:
    outcome = in_own_mounts("--sizes", "[8, 300, 6000, 14000]", "--steps", "[]")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["problems"] == []
    assert found["full"] >= 3
