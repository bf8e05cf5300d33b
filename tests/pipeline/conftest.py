"""A whole study of a toy model, run once for all tests that look at its results."""

from pathlib import Path

import pytest

from tests.pipeline.studies_for_tests import run, toy_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a toy study, run from the command line without disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = toy_study(tmp_path_factory.mktemp("toy"))
    outcome = run(study, folder)
    assert outcome.returncode == 0, outcome.stderr
    return folder / "toy.duckdb"
