"""The two images and a volume for the tests of containers."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.container.engine import STAND_IN, Engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Whatever builds and runs images here; skips where nothing does, or nobody asked."""
    if not os.environ.get("LINEUP_CONTAINER_CHECK"):
        pytest.skip("containers are tried by `make container-check`")
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return Engine(docker=True)
    if STAND_IN.is_file() and os.geteuid() == 0:
        return Engine(docker=False)
    pytest.skip("SKIPPED: no Docker engine answers here, and no stand-in for one was found; nothing was checked")


@pytest.fixture(scope="session")
def serve_image(engine: Engine) -> str:
    """The dashboard's image."""
    return engine.build("latent-lineup:serve", TARGET="serve")


@pytest.fixture(scope="session")
def pipeline_image(engine: Engine) -> str:
    """The image that runs studies."""
    index = os.environ.get("TORCH_INDEX")
    return engine.build("latent-lineup:pipeline", TARGET="pipeline", **({"TORCH_INDEX": index} if index else {}))


@pytest.fixture(scope="session")
def volume(engine: Engine) -> Iterator[str]:
    """A volume of its own, removed afterwards."""
    name = f"lineup-check-{os.getpid()}"
    engine("volume", "create", name)
    yield name
    engine("volume", "rm", "--force", name, check=False)
