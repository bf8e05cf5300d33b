"""Requests that no page makes: a seeded sample of `tests.app.fuzz`."""

from http import HTTPStatus

import pytest

from app.pages import plots
from tests.app.fuzz import fuzz


def test_no_request_is_a_crash() -> None:
    statuses, findings = fuzz(250)
    assert findings == []
    wanted = {HTTPStatus.OK, HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
    assert wanted <= statuses.keys(), "They never get behind the first check, or always do."


def test_a_crash_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_chosen", lambda *_: {}["nothing"])
    _, findings = fuzz(250)
    assert findings
    assert all("KeyError: 'nothing'" in finding for finding in findings)
