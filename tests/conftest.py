"""What kind of machine the tests ran on, in the first lines of their report."""

import pytest

from pipeline.errors import LineupError
from pipeline.hardware import describe, detect


def pytest_report_header() -> str:
    """Processor, cores, and what `precision: auto` means here."""
    try:
        return f"machine: {describe()}; precision: {detect().precision}"
    except LineupError as error:
        raise pytest.UsageError(str(error)) from error
