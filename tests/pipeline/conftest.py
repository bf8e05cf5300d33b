"""A whole study of a toy model, run once for all tests that look at its results."""

from pathlib import Path

import pytest

from tests.pipeline.studies_for_tests import PRECISION, run, toy_study


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy study that `finished` has run."""
    return toy_study(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def finished(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a toy study, run from the command line without disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = run(study_file, folder)
    assert outcome.returncode == 0, outcome.stderr
    return folder / "toy.duckdb"


@pytest.fixture(scope="session")
def in_both_precisions(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Databases of the same study by their precision; emulated where the processor has no bfloat16."""
    other = "float32" if PRECISION == "bfloat16" else "bfloat16"
    folder = tmp_path_factory.mktemp(other)
    outcome = run(toy_study(tmp_path_factory.mktemp("toy"), precision=other), folder)
    assert outcome.returncode == 0, outcome.stderr
    return {PRECISION: finished, other: folder / "toy.duckdb"}
