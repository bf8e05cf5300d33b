"""Images built and containers run, with Docker or with a stand-in for machines that have no engine."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT.parent / "shared" / "container" / "check.sh"
"""Builds a Dockerfile and tries the image by podman where there is no Docker; not part of the project."""

PODMAN = ["podman", "--log-level=fatal", "--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=file"]
HARDENED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


@dataclass(frozen=True)
class Engine:
    """Docker, or podman after the stand-in has installed it."""

    docker: bool

    @cached_property
    def command(self) -> list[str]:
        """What engine commands begin with."""
        return ["docker"] if self.docker else PODMAN

    def __call__(self, *words: str, check: bool = True, timeout: float = 600) -> str:
        outcome = subprocess.run(
            [*self.command, *words], capture_output=True, text=True, check=False, timeout=timeout, cwd=ROOT
        )
        assert not check or outcome.returncode == 0, f"{words}: {outcome.stdout}{outcome.stderr}"
        return outcome.stdout.strip()

    def build(self, tag: str, **arguments: str) -> str:
        """Build an image and give its tag; the stand-in also runs, stops and restarts it."""
        given = [f"{key}={value}" for key, value in arguments.items()]
        started = time.monotonic()
        if self.docker:
            self("build", "--tag", tag, *[word for one in given for word in ("--build-arg", one)], ".", timeout=3000)
        else:
            settings = {
                "BUILD_ARGS": " ".join(given), "RUN_ARGS": " ".join(HARDENED[:3]), "HEALTH_PATH": "/healthz",
                "BUILD_TIMEOUT": "1500", "WAIT": "120",
            }  # fmt: skip
            outcome = subprocess.run([str(STAND_IN), str(ROOT), tag], env=os.environ | settings, check=False)
            assert outcome.returncode == 0
        megabytes = int(self("image", "inspect", tag, "--format", "{{.Size}}")) / 1e6
        print(f"\n{tag}: {megabytes:.0f} MB, built in {time.monotonic() - started:.0f} s")
        return tag

    def run(self, *words: str, **options: object) -> str:
        """`run` with what this machine's engine needs."""
        limits = [] if self.docker else ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
        network = [] if self.docker else ["--network=slirp4netns"]
        return self("run", *network, *limits, *words, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Container:
    """A server in a container."""

    engine: Engine
    name: str
    url: str

    def get(self, path: str) -> str:
        """The body of a page."""
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return str(answer.read().decode())

    def inspect(self, template: str) -> str:
        """A fact about the container."""
        return self.engine("inspect", self.name, "--format", template)


@contextmanager
def serving(engine: Engine, image: str, *words: str) -> Iterator[Container]:
    """Start a server, wait until it answers, and remove it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = f"lineup-check-{port}"
    engine.run("--detach", "--name", name, "--publish", f"127.0.0.1:{port}:8000", *HARDENED, *words, image)
    container = Container(engine, name, f"http://127.0.0.1:{port}")
    try:
        _wait(container)
        yield container
    finally:
        engine("rm", "--force", "--volumes", name, check=False)


def _wait(container: Container, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            container.get("/healthz")
            return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, container.engine("logs", container.name)
            time.sleep(0.2)
