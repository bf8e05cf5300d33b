"""The dashboard below a base path, behind both kinds of proxies: those that take it off requests, and the others."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from app.main import create_app
from app.settings import Settings
from tests.app.blind_client import blind_study, invitation, set_up

PAGES = ("/", "/s/small", "/s/small/latents", "/s/small/latent/trained/1/1", "/s/small/compare", "/s/small/blind")


class Proxy:
    """Publishes an application below /lab/lineup, and nothing beside it."""

    def __init__(self, app: ASGIApp, strips: bool) -> None:
        self._app, self._strips = app, strips

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith("/lab/lineup/"), f"{scope['path']} is not the dashboard's"
            if self._strips:
                path = scope["path"].removeprefix("/lab/lineup")
                scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_study(tmp_path_factory.mktemp("runs"))


@pytest.fixture(params=[True, False], ids=["strips", "keeps"])
def proxy(folder: Path, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    app = Proxy(create_app(Settings(paths=(folder,), base_path="lab/lineup/")), request.param)
    with TestClient(app, base_url="http://testserver/lab/lineup", follow_redirects=True) as client:
        yield client


def links(page: str) -> list[str]:
    """The addresses in a page, one of those that differ in numbers or in parameters only."""
    found = re.findall(r'(?:href|src|hx-get|action)="([^"#]+)"', page)
    return list({re.sub(r"[?].*|\d+", "", address): unescape(address) for address in found}.values())


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_every_page_works(proxy: TestClient, page: str) -> None:
    """Style sheets and scripts among them."""
    text = proxy.get(page).text
    addresses = links(text)
    assert any(address.startswith("/lab/lineup/static/") for address in addresses)
    for address in addresses:
        assert address.startswith("/lab/lineup/"), address
        assert proxy.get(f"http://testserver{address}").status_code == 200, address


def test_experiments_sessions_and_errors_stay_below_the_base_path(proxy: TestClient) -> None:
    own = set_up(proxy)
    assert own.status_code == 200
    assert own.url.path.startswith("/lab/lineup/blind/o/")
    assert "http://testserver/lab/lineup/blind/join/" in own.text
    trial = proxy.post(invitation(own.text))
    assert trial.url.path == "/lab/lineup/blind/rate"
    assert 'action="/lab/lineup/blind/label"' in trial.text
    missing = proxy.get("/static/none.css")
    assert missing.status_code == 404
    assert 'href="/lab/lineup/static/app.css' in missing.text
    assert proxy.get("/api/blind/trial").json()["error"] == "No token"


def test_a_redirect_names_no_host_for_that_may_be_the_proxys_own_name_for_us(proxy: TestClient) -> None:
    response = proxy.get("/s/small/?layer=1", headers={"Host": "127.0.0.1:8000"}, follow_redirects=False)
    assert response.status_code == 307
    assert response.headers["Location"] == "/lab/lineup/s/small?layer=1"
