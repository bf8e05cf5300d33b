"""For all tests: what kind of machine they run on, and that no outcome depends on how busy it is."""

import pytest
from hypothesis import settings

from pipeline.errors import LineupError
from pipeline.hardware import describe, detect

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_report_header() -> str:
    """Processor, cores, and what `precision: auto` means here."""
    try:
        return f"machine: {describe()}; precision: auto is {detect().precision}"
    except LineupError as error:
        raise pytest.UsageError(str(error)) from error
