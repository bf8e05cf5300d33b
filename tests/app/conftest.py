"""A small study on disk, and a client of a dashboard over it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

os.environ["LINEUP_HOSTS"] = "testserver,lineup.example"  # the first is what test clients ask for

from small_study import write_small_study

from app.blind.store import LabelStore
from app.main import create_app
from app.settings import Settings


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one complete study; tests only read it."""
    folder = tmp_path_factory.mktemp("runs")
    write_small_study(folder / "small.duckdb", tell=True)
    return folder


@pytest.fixture(scope="session")
def client(study_folder: Path) -> Iterator[TestClient]:
    """A browser without scripts."""
    with TestClient(create_app(Settings(paths=(study_folder,))), raise_server_exceptions=True) as opened:
        yield opened


@pytest.fixture
def folder_client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of a dashboard over an empty folder: the test's own `tmp_path`."""
    with TestClient(create_app(Settings(paths=(tmp_path,)))) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's labels lie."""
    return tmp_path / "labels.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[LabelStore]:
    """An open label store of the test's own."""
    opened = LabelStore(path)
    yield opened
    opened.close()
