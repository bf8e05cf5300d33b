"""Where a run stands: what the dashboard reads, and what the terminal shows."""

import errno
import io
import json
import os
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.progress import Progress


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "progress.json"


def test_a_stage_tells_how_far_it_is_at_which_rate_and_how_long_it_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    terminal = io.StringIO()
    told = Progress(path, "demo", "A title", planned_saes=9, terminal=terminal)
    with told.stage("sae", "layer 1 · training") as advance:
        clock[0] += 10
        advance(200, 1_000)
        state = json.loads(path.read_text())
        assert (state["state"], state["stage"], state["label"]) == ("running", "sae", "layer 1 · training")
        assert (state["done"], state["total"], state["unit"]) == (200, 1_000, "tokens")
        assert (state["rate"], state["stage_seconds_left"]) == (20, 40)
        assert (state["seconds_elapsed"], state["pid"], state["planned_saes"]) == (10, os.getpid(), 9)
        clock[0] += 40
    assert terminal.getvalue() == "[00:50] layer 1 · training: 50.0 s\n"


def test_no_minute_has_sixty_seconds_on_the_terminal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    terminal = io.StringIO()
    with Progress(path, "demo", "", planned_saes=9, terminal=terminal).stage("train", "training"):
        clock[0] += 179.7
    assert terminal.getvalue() == "[02:59] training: 179.7 s\n"


def test_the_time_left_follows_from_the_saes_that_this_run_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    told = Progress(path, "demo", "", planned_saes=9, terminal=io.StringIO())
    clock[0] = 60
    told.finished_sae(count=5, planned=9, fresh=0)
    assert json.loads(path.read_text())["seconds_left"] is None
    told.finished_sae(count=7, planned=9, fresh=2)
    state = json.loads(path.read_text())
    assert (state["finished_saes"], state["seconds_left"]) == (7, 60)


def test_the_file_is_whole_whenever_it_is_read_and_says_how_the_run_ended(path: Path) -> None:
    told = Progress(path, "demo", "", planned_saes=1, terminal=io.StringIO())
    told.failed("Something is wrong.")
    assert json.loads(path.read_text())["error"] == "Something is wrong."
    assert json.loads(path.read_text())["state"] == "failed"
    told.done()
    assert json.loads(path.read_text())["state"] == "done"
    assert [file.name for file in path.parent.iterdir()] == ["progress.json"]


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_on_a_full_disk_it_goes_on_in_the_terminal_and_the_old_files_own_room_does_for_the_new_state(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    told = Progress(path, "demo", "", planned_saes=1, terminal=terminal)
    with told.stage("sae", "a label that makes the state longer than it is when it has failed " * 3):
        monkeypatch.setattr(Path, "replace", refuse)
    assert "a label that" in terminal.getvalue()
    told.failed("Short.")
    monkeypatch.undo()
    assert (json.loads(path.read_text())["state"], json.loads(path.read_text())["error"]) == ("failed", "Short.")
    assert [file.name for file in path.parent.iterdir()] == ["progress.json"]


def test_a_run_without_file_and_terminal_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal may be a file on the same full disk."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "write", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    told = Progress(path, "demo", "", planned_saes=1, terminal=terminal)
    with told.stage("sae", "training") as advance:
        advance(1, 2)
    told.note("Something.")
    told.failed("Full.")
    monkeypatch.undo()
    assert not path.parent.exists()
