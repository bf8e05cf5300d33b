"""What every request goes through: the rule for writes, and limits on sizes."""

from pathlib import Path

import pytest
from small_study import write_small_study
from starlette.testclient import TestClient

from app.envelope import MOST_ADDRESS, MOST_BODY
from app.main import create_app
from app.settings import Settings


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 405),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, 403),
        ({"Origin": "http://testserver"}, 405),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://lineup.example", "X-Forwarded-Host": "lineup.example"}, 405),
        ({}, 405),  # a program: no other site can send with its credentials
    ],
)
def test_a_write_from_another_site_is_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    response = client.post("/", headers=headers, data={"x": "1"})
    assert response.status_code == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_reading_from_another_site_is_a_link_like_any_other(client: TestClient) -> None:
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_a_body_has_a_known_and_limited_size(client: TestClient) -> None:
    assert client.post("/", content=b"x" * MOST_BODY).status_code == 405
    too_much = client.post("/", content=b"x" * (MOST_BODY + 1))
    assert too_much.status_code == 413
    assert "65,537" in too_much.text
    assert client.post("/", content=iter([b"x"])).status_code == 411


def test_an_address_has_a_limited_size(client: TestClient) -> None:
    assert client.get("/?x=" + "y" * (MOST_ADDRESS - 10)).status_code == 200
    assert client.get("/?x=" + "y" * MOST_ADDRESS).status_code == 414


@pytest.mark.parametrize(
    "name", ["..", "../small", "..%2fsmall", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "small.duckdb", "small%00"]
)
def test_a_name_is_no_path(client: TestClient, name: str) -> None:
    assert client.get(f"/s/{name}/latents").status_code == 404
    assert client.get(f"/static/{name}/../../../pyproject.toml").status_code == 404


def test_ready_when_every_path_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_small_study(folder / "small.duckdb", layers=(0,))
    with TestClient(create_app(Settings(paths=(folder,)))) as opened:
        assert opened.get("/healthz").json() == {"status": "ok"}
        assert opened.get("/readyz").json() == {"status": "ok", "studies": 1}
        folder.rename(tmp_path / "moved")
        gone = opened.get("/readyz")
        assert gone.status_code == 503
        assert gone.json() == {"status": "not ready", "unreadable": ["data"]}
        assert opened.get("/healthz").status_code == 200
