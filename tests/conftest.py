"""For all tests: what kind of machine they run on, and that no outcome depends on how busy it is."""

import signal

import pytest
from hypothesis import settings

from core.errors import UserError
from pipeline.hardware import describe, detect

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` leaves it ignored, and tests press Ctrl-C


def pytest_report_header() -> str:
    """Processor, cores, and what `precision: auto` means here."""
    try:
        return f"machine: {describe()}; precision: auto is {detect().precision}"
    except UserError as error:
        raise pytest.UsageError(str(error)) from error
