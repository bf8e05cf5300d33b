"""What the server is told wrongly is one sentence and exit status 2, whether by the environment or by an option."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.main import serve
from app.settings import Settings, read_settings
from core.errors import UserError
from lineup import main

BAD = {
    "paths": ["", ":", "/nowhere/at/all", __file__, "x" * 5000],
    "labels": [],
    "organiser_key": [],
    "host": [
        "",
        " ",
        "no such host",
        "nowhere.invalid",
        "x" * 300,
        "::g",
        "[::1",
        "http://localhost",
        "a\tb",
        "é" * 100,
        "127.0.0.1:80",
    ],
    "port": ["", " ", "many", "99999", "-1", "80.5", "1e3", "0x50", "9" * 5000],
    "hosts": ["http://lineup.example", "lineup.example:8000", "a/b", "a,b c;d", "[::1]"],
    "base_path": ["http://x/lineup", "/a b", "/s", "blind/x", "/static/", "/a?b", "/ä"],
    "query_seconds": ["", "soon", "0", "-1", "nan", "inf", "1e300"],
    "log_level": ["", "loud", "INFO", "0"],
}
"""By field, what it cannot be; any text is good for a file of labels, opened when it is needed, and for a key."""


def test_every_setting_is_tried() -> None:
    assert BAD.keys() == Settings.model_fields.keys()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence that `lineup serve` ends with."""
    assert main(["serve", *arguments]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert line.startswith("lineup: ")
    return line


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_value_in_the_environment_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], field: str, value: str
) -> None:
    monkeypatch.setenv("LINEUP_PORT", "0")
    monkeypatch.setenv("LINEUP_PATHS", str(tmp_path))
    monkeypatch.setenv(f"LINEUP_{field.upper()}", value)
    found = refused(capsys)
    assert f"LINEUP_{field.upper()} is " in found or value in found
    assert "Traceback" not in found


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "99999"), ("--port", "-1"), ("--host", ""), ("--host", "nowhere.invalid")]
)
def test_a_bad_option_is_one_sentence_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    found = refused(capsys, str(tmp_path), "--port", "0", option, value)
    assert option in found or value in found


def test_an_empty_value_is_none_where_none_is_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LABELS", "ORGANISER_KEY", "HOSTS", "BASE_PATH"):
        monkeypatch.setenv(f"LINEUP_{name}", "")
    settings = read_settings({})
    assert (settings.labels, settings.organiser_key, settings.hosts, settings.base_path) == (None, "", None, "")


def test_a_value_that_is_no_text_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEUP_HOST", os.fsdecode(b"\xff"))
    with pytest.raises(UserError, match="LINEUP_HOST is"):
        read_settings({})


@pytest.mark.parametrize("host", ["nowhere.invalid", "x" * 300, "a..b", "::g"])
def test_a_host_that_is_not_found_is_one_sentence(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match="Cannot listen on"):
        serve(Settings(paths=(tmp_path,), host=host, port=0))


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("gpubox", "gpubox")]
)
def test_the_address_is_one_that_can_be_opened(host: str, shown: str) -> None:
    assert Settings(host=host).reached_at == shown


def test_the_health_check_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LINEUP_PORT", "many")
    assert main(["healthcheck"]) == 1
    assert "LINEUP_PORT is 'many'" in capsys.readouterr().err


def test_the_command_as_it_is_typed_ends_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lineup", "serve", str(tmp_path)]
    environment = os.environ | {"LINEUP_PORT": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [ended.stderr.strip()]
    assert "Traceback" not in ended.stderr
