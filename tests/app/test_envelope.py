"""What every request goes through: the rule for writes, and limits on sizes."""

import socket
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from small_study import write_small_study
from starlette.testclient import TestClient

from app.main import create_app
from app.security import MOST_ADDRESS, MOST_BODY
from app.settings import Settings
from tests.app.blind_client import blind_study, invitation, own_link, serving, set_up
from tests.live_server import running


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


CHUNK = b"x" * 8192


def test_chunks_are_read_no_further_than_the_limit_whatever_else_the_headers_say(study_folder: Path) -> None:
    """The server hangs up long before 80 MB are sent."""
    headers = b"Host: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"
    with running(study_folder) as server, socket.create_connection(("127.0.0.1", urlsplit(server).port), 30) as client:
        client.sendall(b"POST /blind/label HTTP/1.1\r\n%s\r\n\r\n" % headers)
        with pytest.raises(ConnectionError):
            deque((client.sendall(b"2000\r\n%s\r\n" % CHUNK) for _ in range(10_000)), maxlen=0)


def test_the_limit_counts_what_arrives(client: TestClient) -> None:
    """A length that is smaller than the body, which real servers do not let through but for chunks."""
    body = [b"x" * MOST_BODY, b"y"]
    response = client.post("/blind/label", content=iter(body), headers={"Content-Length": "5"})
    assert response.status_code == 413
    assert response.headers["Connection"] == "close"


GETS = ("/", "/s/small", "/s/small/latents", "/static/app.css", "/healthz", "/blind/needed", "/nothing", "/s/none")


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(client: TestClient, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert dict(head.headers) == dict(get.headers)
    assert int(head.headers["Content-Length"]) == len(get.content)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/", "GET, HEAD"),
        ("DELETE", "/s/small/blind", "GET, HEAD, POST"),
        ("GET", "/blind/label", "POST"),
        ("HEAD", "/blind/label", "POST"),
        ("PUT", "/api/blind/sessions", "POST"),
        ("POST", "/static/app.css", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
        ("OPTIONS", "/s/small/plots", "GET, HEAD"),
    ],
)
def test_a_method_that_an_address_does_not_take_is_told_which_it_does(
    client: TestClient, method: str, path: str, allow: str
) -> None:
    response = client.request(method, path, headers={"Content-Length": "0"})
    assert response.status_code == 405
    assert response.headers["Allow"] == allow


def test_nothing_behind_a_secret_address_may_be_kept_by_anybody(tmp_path: Path) -> None:
    with serving(blind_study(tmp_path)) as client:
        page = set_up(client).text
        own, join = own_link(page), invitation(page)
        paths = ("", "/labels.csv", "/labels.parquet", "/method.txt")
        found = [*(client.get(own + path) for path in paths), client.get(join), client.post(join)]
        found += [client.get("/blind/o/none"), client.get("/api/blind/trial"), client.post("/s/small/blind")]
        found += found[-4].history
        assert {response.headers["Cache-Control"] for response in found} == {"no-store"}
        assert client.get("/s/small").headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("origin", ["http://[", "http://testserver:99999999", "x", "", "http://"])
def test_an_origin_that_is_none_is_another_site(client: TestClient, origin: str) -> None:
    assert client.post("/", headers={"Origin": origin}).status_code == 403


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
