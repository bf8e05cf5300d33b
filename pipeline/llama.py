"""Runs llama.cpp's server on this machine for as long as a study or a rater needs a local language model."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Self

from core.errors import UserError
from core.files import replacing, writing
from pipeline.models import wheels

LOCAL = "local"
"""What stands for an endpoint where the server is to be started here."""
PACKAGE = "xllamacpp"
CONTEXT = 4096
"""Tokens of a prompt and its answer, which is enough for a study's."""
MOST_THREADS = 8
"""More make models of the size that a processor can run no faster."""
SECONDS_TO_END = 10.0


class Address(NamedTuple):
    """Where a server listens, and what it asks for."""

    url: str
    key: str


class Llama:
    """A model, and the server that is started when its address is first asked for and ends with this program.

    It answers `slots` prompts at once, of up to `context` tokens each. A model in pieces is joined in `cache`. Raises
    UserError where llama.cpp or the model is missing; `setting` is what the user asked for it with.
    """

    def __init__(
        self, source: str, cache: Path, slots: int, context: int = CONTEXT, setting: str = "autointerp.llm.model"
    ) -> None:
        self._pieces = find(source, setting)
        self._cache = cache
        self._slots, self._context = slots, context
        self._process: subprocess.Popen[str] | None = None
        self._address: Address | None = None
        self._lock = threading.Lock()
        self._sha256 = wheels.sha256(self._pieces)
        self.identity = f"{LOCAL}:{self._sha256}:{PACKAGE} {metadata.version(PACKAGE)}"
        """What decides its answers: the content of the model's file, and the version of llama.cpp."""

    def address(self) -> Address:
        """Where it listens; starts it if it has not been started. Raises UserError if it cannot be, or has ended."""
        with self._lock:
            if self._process is None:
                self._start()
            elif self._process.poll() is not None:
                raise UserError(
                    f"llama.cpp, which ran the local language model, has ended with status {self._process.returncode}:"
                    " run the same command again, what is answered is kept."
                )
            assert self._address is not None
            return self._address

    def _start(self) -> None:
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        command = [sys.executable, "-P", str(Path(__file__).with_name("llama_process.py")), str(self._file())]
        # OpenMP's threads wait for each other by spinning: on a busy machine that makes an answer ten times as slow.
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        self._process = subprocess.Popen(
            [*command, *map(str, (self._slots, self._context, threads))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the study, which then ends this one
        )
        assert self._process.stdout is not None
        try:
            said = json.loads(self._process.stdout.readline())
        except ValueError:
            said = {"error": f"ended with status {self._process.wait()} while it was loading the model"}
        if "error" in said:
            raise UserError(f"llama.cpp, which would run the local language model, {said['error']}.")
        self._address = Address(said["address"], said["key"])

    def _file(self) -> Path:
        """The model's file; one in pieces is joined once."""
        if len(self._pieces) == 1:
            return self._pieces[0]
        file = self._cache / f"{self._sha256[:12]}-{wheels.whole_name(self._pieces)}"
        if not file.exists():
            with writing(file), replacing(file, f".{os.getpid()}") as partial:
                self._cache.mkdir(parents=True, exist_ok=True)
                wheels.write_whole(self._pieces, partial)
        return file

    def close(self) -> None:
        """End the server."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find(source: str, setting: str = "autointerp.llm.model") -> Sequence[Path]:
    """The file of a local model, or its pieces. Raises UserError where it, or llama.cpp, is missing."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"A local language model needs {PACKAGE}, which is not installed: pip install 'latent-lineup[llm]', or name"
            " an endpoint that is running already."
        )
    kind, _, place = source.partition(":")
    if kind == "wheel" and place:
        return wheels.pieces(place, setting)
    if kind != "gguf" or not place:
        raise UserError(f"Unknown {setting} '{source}' of a local model. Known: wheel:PACKAGE, gguf:PATH.")
    file = Path(place).expanduser()
    if not file.is_file():
        raise UserError(f"The file '{place}' of {setting} does not exist: give the path of a GGUF file.")
    return [file]
