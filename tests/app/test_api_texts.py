"""Texts in JSON that are none: half a character, in every field of every request."""

import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from app.blind import api
from app.blind.design import Design
from tests.app.blind_client import blind_study, invitation, serving, set_up

DESIGN = {"study": "small", "layers": [1], "variants": ["control"], "form": "single", "title": "x", "organiser_key": ""}
JOIN = {"invite": "", "pseudonym": "rater"}
ANSWER = {"trial": "", "revision": 1, "answer": 3, "skip": None, "seconds": 1.0}
UNDO = {"trial": "", "revision": 1}
REQUESTS = [
    *(("experiments", DESIGN, field) for field in [*Design.model_fields, "organiser_key", "new"]),
    *(("sessions", JOIN, field) for field in [*api._Join.model_fields, "new"]),
    *(("answers", ANSWER, field) for field in [*api._Answer.model_fields, "new"]),
    *(("undo", UNDO, field) for field in [*api._Undo.model_fields, "new"]),
]
AS_JSON = {"Content-Type": "application/json"}
HALVES = ["\\ud800", "a\\udfff", "\\ud800\\ud800"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A program in an experiment."""
    with serving(blind_study(tmp_path_factory.mktemp("runs")), organiser_key="key") as opened:
        invite = invitation(set_up(opened, organiser_key="key").text).rpartition("/")[2]
        token = opened.post("/api/blind/sessions", json={"invite": invite}).json()["token"]
        opened.headers["Authorization"] = f"Bearer {token}"
        yield opened


def written(values: dict[str, object], field: str, text: str) -> str:
    """JSON with a field that is, or in lists holds, an escaped text."""
    mark = "half a character"
    value = [mark] if field in ("layers", "variants") else mark
    return json.dumps(values | {field: value}).replace(mark, text)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("path", "values", "field"), REQUESTS)
def test_half_a_character_is_refused_in_a_sentence(
    client: TestClient, path: str, values: dict[str, object], field: str, half: str
) -> None:
    response = client.post(f"/api/blind/{path}", content=written(values, field, half), headers=AS_JSON)
    assert response.status_code == 400
    assert response.json()["message"]


@pytest.mark.parametrize("path", ["experiments", "sessions", "answers", "undo"])
@pytest.mark.parametrize(
    "body",
    [
        '{"\\ud800": 1}',
        '{"\\ud800',
        '"\\ud800"',
        '["\\ud800"]',
        "\ud800".encode("utf-8", "surrogatepass"),
        "[" * 60_000,
    ],
    ids=range(6),
)
def test_half_a_character_elsewhere_is_too(client: TestClient, path: str, body: str | bytes) -> None:
    response = client.post(f"/api/blind/{path}", content=body, headers=AS_JSON)
    assert response.status_code == 400
    assert response.json()["message"]


@pytest.mark.parametrize("field", ["title", "layers", "trials", "organiser_key"])
@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "utf-16", "none"])
def test_a_form_in_a_character_set_that_has_halves_is_refused(client: TestClient, field: str, charset: str) -> None:
    body = f'--x\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n\\ud800+2AA-\r\n--x--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    assert client.post("/s/small/blind", content=body, headers=headers).status_code == 415
