"""The names that a server answers to, and those that it gives to others."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.blind_client import blind_study, set_up


@pytest.fixture(autouse=True)
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server finds its environment."""
    monkeypatch.delenv("LINEUP_HOSTS")


LOCAL = (
    "localhost",
    "LOCALHOST:8000",
    "127.0.0.1:8000",
    "127.8.9.1",
    "[::1]:8000",
    "[::1]",
    "lineup.localhost",
    "localhost.",
)
NUMBERS = ("192.168.1.7:8000", "[fe80::1]:8000", "10.0.0.1")
"""A name can be led elsewhere, a number cannot."""
NAMES = (
    "evil.example:8000",
    "lineup.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil-localhost",
    "1",
)
ODD = ("[evil.example]:8000", "evil.example:80:80", "::::", "[", "]", "localhost@evil.example", "é", "a" * 1000)


def status(name: str, headers: dict[str, str] | None = None, **settings: object) -> int:
    """Of the page of studies, asked for by a name."""
    client = TestClient(create_app(Settings(paths=(Path("nowhere"),), **settings)))
    return client.get("/", headers={"Host": name.encode(), **(headers or {})}).status_code


@pytest.mark.parametrize("host", [*LOCAL, *NUMBERS])
@pytest.mark.parametrize("settings", [{}, {"host": "0.0.0.0"}, {"hosts": ("lineup.example",)}])
def test_local_names_and_numbers_are_always_good(host: str, settings: dict[str, object]) -> None:
    assert status(host, **settings) == 200


@pytest.mark.parametrize("host", [*NAMES, *ODD])
@pytest.mark.parametrize("listening", ["127.0.0.1", "::1", "localhost"])
def test_a_server_for_this_machine_answers_to_no_other_name(host: str, listening: str) -> None:
    assert status(host, host=listening) == 421


@pytest.mark.parametrize("listening", ["0.0.0.0", "::", "192.168.1.7", "gpubox"])
def test_a_server_for_others_answers_to_every_name_unless_it_is_told_which(listening: str) -> None:
    assert status("gpubox.lab.example", host=listening) == 200
    assert status("gpubox.lab.example", host=listening, hosts=("lineup.example",)) == 421
    assert status(listening if ":" not in listening else f"[{listening}]", host=listening, hosts=("x",)) == 200


@pytest.mark.parametrize(
    ("told", "good", "bad"),
    [
        ("lineup.example", ["lineup.example", "Lineup.Example:8443"], ["a.lineup.example", "lineup.example.evil"]),
        (" A.example., b.example ", ["a.example", "b.example:1"], ["c.example"]),
        ("*.lab.example", ["gpu.lab.example", "a.b.lab.example"], ["lab.example", "lab.example.evil"]),
        ("*", ["evil.example"], []),
        ("", ["localhost"], ["evil.example"]),
    ],
)
def test_names_are_given_as_they_are_or_with_a_star(
    monkeypatch: pytest.MonkeyPatch, told: str, good: list[str], bad: list[str]
) -> None:
    monkeypatch.setenv("LINEUP_HOSTS", told)
    assert [status(host) for host in good] == [200] * len(good)
    assert [status(host) for host in bad] == [421] * len(bad)


def test_what_a_proxy_says_must_be_ours_too_and_does_not_stand_in_for_the_rest() -> None:
    ours = {"hosts": ("lineup.example",)}
    assert status("127.0.0.1:8000", {"X-Forwarded-Host": "lineup.example"}, **ours) == 200
    assert status("127.0.0.1:8000", {"X-Forwarded-Host": "lineup.example, 10.0.0.1"}, **ours) == 200
    assert status("127.0.0.1:8000", {"X-Forwarded-Host": "evil.example"}, **ours) == 421
    assert status("evil.example", {"X-Forwarded-Host": "lineup.example"}, **ours) == 421
    assert status("evil.example", {"X-Forwarded-Host": "localhost"}) == 421


def test_the_refusal_names_the_setting_in_pages_and_in_json() -> None:
    client = TestClient(create_app(Settings(paths=(Path("nowhere"),))), base_url="http://evil.example")
    for answer in (client.get("/").text, client.post("/api/blind/sessions", json={}).text):
        assert "evil.example" in answer
        assert "LINEUP_HOSTS" in answer


def test_the_organisers_links_begin_with_what_the_browser_asked_for(tmp_path: Path) -> None:
    app = create_app(Settings(paths=(blind_study(tmp_path),), hosts=("lineup.example",)))
    with TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=True) as client:
        client.headers.update({"X-Forwarded-Host": "lineup.example, proxy", "X-Forwarded-Proto": "https, http"})
        assert "https://lineup.example/blind/join/" in set_up(client).text
        client.headers.update({"X-Forwarded-Proto": "javascript"})
        assert "http://lineup.example/blind/join/" in set_up(client).text
