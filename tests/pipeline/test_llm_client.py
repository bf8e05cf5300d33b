"""The language model's client against a server that misbehaves: no answer is lost, invented, paid twice or leaked."""

import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from core.errors import UserError
from pipeline.autointerp import client as clients
from pipeline.autointerp.client import AnswerCache, Client, make_client
from pipeline.autointerp.endpoint import Budget, Pace
from pipeline.autointerp.prompts import Form, Prompt
from pipeline.config import LlmConfig
from tests.pipeline.llm_server import Model, completion, cut_off, echoes_headers, good, running, says, silent, status

KEY = "sk-a/very+secret=key"
WORDS = Prompt("Explain.", "What is it? Explanation:", "line")
ABLE = {"seed": True, "stop": True, "logprobs": True, "few_logprobs": False, "json": True}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running() as server:
        yield server


class Asking:
    """Makes clients of one server and folder that do not sleep but note how long they would, and asks one question."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.slept: list[float] = []
        self.now = 0.0

    def client(self, key: str = "", **settings: Any) -> Client:
        config = LlmConfig(**({"endpoint": self.model.address, "model": "m", "concurrency": 1} | settings))
        return Client(config, self.folder, key, sleep=self.sleep, clock=lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def ask(self, *prompts: Prompt, **settings: Any) -> list[clients.Answer]:
        client = self.client(**settings)
        try:
            return client.ask_all(prompts or [WORDS], lambda _done, _total: None)
        finally:
            client.close()


@pytest.fixture
def asking(model: Model, tmp_path: Path) -> Asking:
    """Knows what the server can do, so that the first request is the test's."""
    found = Asking(model, tmp_path)
    client = found.client()
    assert client.abilities() == ABLE
    client.close()
    model.seen.clear()
    return found


def number(n: int, form: Form = "yes_no") -> Prompt:
    return Prompt("Judge.", f"Excerpt: the cat number {n}", form)


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


# ---- asking, keeping, going on ----


def test_answers_come_in_the_order_of_the_questions_from_many_threads(asking: Asking) -> None:
    asking.model.usual = lambda handler, body: handler.reply(200, completion(body["messages"][1]["content"]))
    told: list[tuple[int, int]] = []
    client = asking.client(concurrency=8)
    answers = client.ask_all([number(n) for n in range(40)], lambda done, total: told.append((done, total)))
    client.close()
    assert [answer.text for answer in answers] == [number(n).user for n in range(40)]
    assert told == [(n, 40) for n in range(1, 41)]


def test_what_was_answered_is_never_asked_again(asking: Asking) -> None:
    first = asking.ask(number(0), number(1))
    assert len(asking.model.seen) == 2
    asking.model.usual = status(500)
    assert asking.ask(number(0), number(1)) == first
    assert asking.ask(number(0), number(1), offline=True) == first
    assert len(asking.model.seen) == 2


def test_another_model_or_endpoint_or_setting_is_another_question(asking: Asking) -> None:
    asking.ask()
    for settings in ({"model": "other"}, {"endpoint": asking.model.address + "/"}, {"max_tokens": 9}):
        asking.model.seen.clear()
        asking.ask(**settings)
        assert bool(asking.model.seen) == ("endpoint" not in settings), settings
    with running() as other:
        asking.ask(endpoint=other.address)
        assert other.seen


def test_offline_nothing_is_sent_and_what_is_missing_failed(asking: Asking) -> None:
    (answer,) = asking.ask(offline=True)
    assert (answer.text, answer.reason) == (None, "offline: not in the cache")
    assert asking.model.seen == []


def test_an_answer_is_kept_before_anybody_reads_it(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    asking.model.usual = says("rubbish")

    def fails(_: str) -> None:
        raise RuntimeError("reading")

    monkeypatch.setattr(clients, "read", fails)
    with pytest.raises(RuntimeError, match="reading"):
        asking.ask()
    record = kept(asking.folder)[-1]
    assert "rubbish" in record["answer"]
    assert record["request"]["messages"][1]["content"] == WORDS.user


def test_a_line_that_was_cut_by_a_kill_does_not_count_nor_spoil_the_next(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put("a", {"messages": []}, "one")
    cache.close()
    with (tmp_path / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "b", "answer": "tw')
    cache = AnswerCache(tmp_path)
    assert cache.get("b") is None
    cache.put("c", {"messages": []}, "three")
    for _ in range(2):
        assert [cache.get(key) for key in "abc"] == ["one", None, "three"]
        cache.close()
        cache = AnswerCache(tmp_path)
    cache.close()


def test_a_line_that_is_not_as_it_was_written_does_not_count(tmp_path: Path) -> None:
    """Whichever bit of it is another one: that would be another answer in silence."""
    cache = AnswerCache(tmp_path)
    for key in "abc":
        cache.put(key, {"messages": [{"role": "user", "content": "naïve \ud800"}]}, f"answer {key} \udfff")
    cache.close()
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    first, second = len(whole) // 3, 2 * len(whole) // 3
    for bit in range(8 * first, 8 * (second - 1), 37):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        cache = AnswerCache(tmp_path)
        assert [cache.get(key) for key in "abc"] == ["answer a ?", None, "answer c ?"], bit
        assert cache.damaged >= 1
        assert len(list(cache.all())) == 2
        cache.close()


def test_on_a_full_disk_no_torn_line_spoils_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, write = AnswerCache(tmp_path), os.write
    cache.put("a", {"messages": []}, "one")
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        with pytest.raises(UserError, match=r"answers\.jsonl': No space left on device\. .* make room, then"):
            cache.put("b", {"messages": []}, "two")
    cache.put("c", {"messages": []}, "three")
    cache.close()
    cache = AnswerCache(tmp_path)
    assert [cache.get(key) for key in "abc"] == ["one", None, "three"]
    assert cache.damaged == 0
    cache.close()


# ---- what the endpoint can do ----


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"seed": true}', '{"seed": true, "logprobs": true, "jsoo": true}'])
def test_what_is_remembered_of_an_endpoint_is_asked_again_where_it_is_damaged(
    damage: str, asking: Asking, tmp_path: Path
) -> None:
    (path,) = tmp_path.glob("endpoint-*.json")
    before = path.read_text()
    path.write_text(damage)
    client = asking.client()
    assert client.abilities() == ABLE
    client.close()
    assert path.read_text() == before


def test_what_cannot_be_remembered_of_an_endpoint_is_a_sentence(
    asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (path,) = tmp_path.glob("endpoint-*.json")
    path.unlink()
    client = asking.client()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        client.abilities()
    client.close()


def test_requests_are_made_for_repeatable_answers(asking: Asking) -> None:
    asking.ask(WORDS, number(0), number(1, "list"), max_tokens=99)
    always = {"model": "m", "temperature": 0, "seed": 0}
    assert [{key: body[key] for key in always} for body in asking.model.seen] == [always] * 3
    assert [{key: body[key] for key in body if key not in {*always, "messages"}} for body in asking.model.seen] == [
        {"max_tokens": 99, "stop": ["\n"]},
        {"max_tokens": 1, "logprobs": True, "top_logprobs": 20},
        {"max_tokens": 99, "response_format": {"type": "json_object"}},
    ]


@pytest.mark.parametrize("code", [400, 422, 500, 501])
def test_what_the_endpoint_refuses_is_left_out_and_it_is_asked_once(model: Model, tmp_path: Path, code: int) -> None:
    asking = Asking(model, tmp_path)
    able = good(lambda _: 0.9)
    model.usual = lambda handler, body: (status(code) if "seed" in body else able)(handler, body)
    client = asking.client(attempts=2)
    assert client.abilities() == ABLE | {"seed": False}
    client.close()
    probes = len(model.seen)
    asking.ask(number(0))
    assert len(model.seen) == probes + 1
    assert "seed" not in model.seen[-1]


def test_log_probabilities_that_are_ignored_are_not_there(model: Model, tmp_path: Path) -> None:
    model.usual = good(lambda _: 0.9, logprobs=False)
    client = Asking(model, tmp_path).client()
    assert client.abilities() == ABLE | {"logprobs": False}
    assert not client.gives_probabilities
    client.close()


def test_an_endpoint_that_gives_fewer_log_probabilities_is_asked_for_fewer(model: Model, tmp_path: Path) -> None:
    able = good(lambda _: 0.9)
    model.usual = lambda handler, body: (status(400) if body.get("top_logprobs") == 20 else able)(handler, body)
    asking = Asking(model, tmp_path)
    client = asking.client()
    assert client.abilities() == ABLE | {"logprobs": False, "few_logprobs": True}
    assert client.gives_probabilities
    client.close()
    asking.ask(number(0))
    assert model.seen[-1]["top_logprobs"] == 5


def test_a_model_that_thinks_first_is_not_asked_for_its_first_word_nor_stopped_at_its_first_line(
    model: Model, tmp_path: Path
) -> None:
    first = {"token": "<think>", "logprob": -1e-6, "top_logprobs": [{"token": "yes", "logprob": -14.0}]}

    def thinks(handler: Any, body: Any) -> None:
        tokens = [first] if body.get("logprobs") else None
        thoughts = "<think>" if "stop" in body else "<think>\nHm.\n</think>\n\nyes"
        handler.reply(200, completion(thoughts, tokens))

    model.usual = thinks
    asking = Asking(model, tmp_path)
    client = asking.client()
    assert not client.gives_probabilities
    client.close()
    assert asking.ask()[0].text == "<think>\nHm.\n</think>\n\nyes"
    assert "stop" not in model.seen[-1]


def test_an_outage_while_it_is_asked_what_it_can_is_not_taken_for_an_answer(model: Model, tmp_path: Path) -> None:
    asking = Asking(model, tmp_path)
    able = good(lambda _: 0.9)
    model.usual = lambda handler, body: (status(503) if "logprobs" in body else able)(handler, body)
    with pytest.raises(UserError, match="did not say whether it supports logprobs"):
        asking.ask()
    model.usual = able
    client = asking.client()
    assert client.abilities() == ABLE
    client.close()


def test_an_endpoint_that_does_not_answer_at_all_is_an_error(model: Model, tmp_path: Path) -> None:
    asking = Asking(model, tmp_path)
    with pytest.raises(UserError, match="does not answer: ConnectError"):
        asking.ask(endpoint="http://127.0.0.1:9/v1", attempts=2)
    model.usual = status(400, "unknown model")
    with pytest.raises(UserError, match="does not answer: HTTP 400: unknown model"):
        asking.ask()


# ---- trouble ----


def test_it_waits_as_long_as_it_is_told(asking: Asking) -> None:
    asking.model.script.extend([status(429, Retry_After="7"), status(503, Retry_After="2")])
    assert asking.ask()[0].text
    assert asking.slept == [7, 2]


def test_a_time_to_come_back_may_be_a_date_and_is_never_waited_for_all_day(asking: Asking) -> None:
    asking.model.script.extend(
        [
            status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
            status(429, Retry_After="Wed, 21 Oct 2999 07:28:00 GMT"),
            status(429, Retry_After="soon"),
        ]
    )
    assert asking.ask()[0].text
    assert asking.slept[:2] == [0, clients.LONGEST_WAIT_SECONDS]
    assert 0 <= asking.slept[2] <= 60


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again_with_growing_pauses(asking: Asking, code: int) -> None:
    asking.model.script.extend([status(code)] * 3)
    assert asking.ask()[0].text
    assert len(asking.model.seen) == 4
    assert all(0 <= pause <= 2**attempt for attempt, pause in enumerate(asking.slept))
    assert len(asking.slept) == 3


def test_pauses_have_jitter(asking: Asking) -> None:
    asking.model.script.extend([*[status(500)] * 5, good(lambda _: 0.9), *[status(500)] * 5])
    asking.ask(number(0), number(1))
    assert len(set(asking.slept)) == 10


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (status(500, "boom"), "HTTP 500: boom"),
        (cut_off, "the answer was cut off"),
        (silent, "timeout after 0.1 s"),
        (lambda handler, _: handler.reply(200, "<html>busy</html>"), "is no JSON: '<html>busy</html>'"),
        (
            lambda handler, _: handler.reply(200, '{"error": {"message": "upstream", "code": 502}}'),
            "HTTP 502: upstream",
        ),
    ],
)
def test_trouble_that_does_not_pass_is_a_failure_with_a_reason(asking: Asking, behaviour: Any, reason: str) -> None:
    asking.model.script.extend([behaviour] * 3)
    before = len(kept(asking.folder))
    (answer,) = asking.ask(attempts=3, timeout_seconds=0.1)
    assert answer.text is None
    assert reason in answer.reason
    assert len(asking.model.seen) == 3
    assert len(kept(asking.folder)) == before
    assert asking.ask()[0].text, "a failure is asked again by the next run"


def test_trouble_that_passes_leaves_no_trace_in_the_answer(asking: Asking) -> None:
    asking.model.script.extend([status(500), cut_off, status(429), silent])
    (answer,) = asking.ask(timeout_seconds=0.1)
    assert answer.text == "cats"
    assert len(asking.model.seen) == 5


def test_an_answer_that_trickles_is_given_up(asking: Asking) -> None:
    def trickles(handler: Any, body: Any) -> None:
        asking.now += 121
        good(lambda _: 0.9)(handler, body)

    asking.model.usual = trickles
    assert asking.ask(attempts=2)[0].reason == "timeout after 120 s"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (says(None, message={"content": None, "refusal": "I will not"}), "refused"),
        (says("I", finish_reason="content_filter"), "refused"),
        (says(None), "unparsed: no text"),
        (says(" \n"), "unparsed: no text"),
        (lambda handler, _: handler.reply(200, '{"choices": []}'), "unparsed: no text"),
        (status(400, '{"error": {"message": "context of 2048 tokens"}}'), "HTTP 400: context of 2048 tokens"),
    ],
)
def test_an_answer_without_words_is_a_failure_and_no_second_try_is_paid(
    asking: Asking, behaviour: Any, reason: str
) -> None:
    asking.model.usual = behaviour
    (answer,) = asking.ask()
    assert answer.text is None
    assert answer.reason.startswith(reason)
    assert len(asking.model.seen) == 1


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_what_every_request_would_get_ends_the_run(asking: Asking, code: int) -> None:
    asking.model.usual = status(code)
    with pytest.raises(UserError, match=rf"HTTP {code}: no.*LINEUP_LLM_KEY in the environment \(not set\)"):
        asking.ask(*[number(n) for n in range(5)])
    assert len(asking.model.seen) < 5


def test_an_endpoint_that_is_down_ends_the_run_and_what_was_answered_is_kept(asking: Asking) -> None:
    asking.model.script.append(good(lambda _: 0.9))
    asking.model.usual = status(503, "down")
    with pytest.raises(UserError, match="failed 20 requests in a row, 2 attempts each, at last with: HTTP 503: down"):
        asking.ask(*[number(n) for n in range(50)], attempts=2)
    assert len(asking.model.seen) == 1 + 20 * 2
    assert asking.ask(number(0), offline=True)[0].text


def test_failures_with_answers_between_them_do_not_end_the_run(asking: Asking) -> None:
    some = [status(503)] * 19
    asking.model.script.extend([*some, good(lambda _: 0.9), *some])
    answers = asking.ask(*[number(n) for n in range(39)], attempts=1)
    assert [bool(answer.text) for answer in answers] == [False] * 19 + [True] + [False] * 19


def test_an_answer_that_was_cut_off_says_so(asking: Asking) -> None:
    asking.model.usual = says("and so on, and", finish_reason="length")
    (answer,) = asking.ask()
    assert (answer.text, answer.cut) == ("and so on, and", True)


# ---- limits ----


class Minutes:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"requests_per_minute": 2}, [0, 0, 60, 60, 120]),
        ({"tokens_per_minute": 25}, [0, 0, 60, 60, 120]),
        ({"tokens_per_minute": 5}, [0, 60, 120, 180, 240]),
        ({}, [0, 0, 0, 0, 0]),
    ],
)
def test_no_minute_holds_more_than_the_endpoint_allows(limits: dict[str, int], expected: list[float]) -> None:
    clock = Minutes()
    pace = Pace(LlmConfig(**limits), lambda: clock.now, clock.sleep)
    times = []
    for _ in range(5):
        pace.wait(10)
        times.append(clock.now)
    assert times == expected


def test_a_minute_has_sixty_seconds() -> None:
    clock = Minutes()
    pace = Pace(LlmConfig(requests_per_minute=1), lambda: clock.now, clock.sleep)
    pace.wait(10)
    clock.now = 59.5
    pace.wait(10)
    assert clock.now == 60


def test_the_client_keeps_to_the_pace(asking: Asking) -> None:
    asking.ask(*[number(n) for n in range(5)], requests_per_minute=2)
    assert asking.slept == [60, 60]


def test_it_stops_before_it_spends_more_and_keeps_what_it_paid_for(asking: Asking) -> None:
    # An answer costs 100 · 1 + 10 · 10 = 200 millionths; the probes' five answers have cost 1000 of them.
    prices = {"price_in": 1, "price_out": 10}
    with pytest.raises(UserError, match=r"cost 0\.0016.*autointerp\.llm\.max_cost 0\.00161"):
        asking.ask(*[number(n) for n in range(50)], **prices, max_cost=0.00161)
    assert len(asking.model.seen) == 3
    assert len(asking.ask(number(0), number(1), number(2), **prices, offline=True)) == 3
    asking.model.seen.clear()
    with pytest.raises(UserError, match="max_cost"):
        asking.ask(*[number(n) for n in range(50)], **prices, max_cost=0.00161)
    assert asking.model.seen == [], "what an earlier run paid counts"
    asking.ask(*[number(n) for n in range(5)], **prices, max_cost=0.00201)
    assert len(asking.model.seen) == 2


def test_money_under_way_is_set_aside() -> None:
    budget = Budget(LlmConfig(price_in=1, price_out=1, max_cost=0.0005))
    first, second = budget.reserve(400, 100), budget.reserve(400, 100)
    with pytest.raises(UserError, match="max_cost"):
        budget.reserve(400, 100)
    budget.settle(first, 0.00001)
    budget.reserve(400, 100)
    assert (budget.spent, second) == (0.00001, 0.0002)


def test_the_guess_at_tokens_learns_from_texts_that_have_more() -> None:
    budget = Budget(LlmConfig())
    assert budget.tokens(400) == 100
    budget.counted(40, 40)  # a short one: most of it is the endpoint's own
    budget.counted(4000, 2000)
    budget.counted(4000, 500)
    assert budget.tokens(400) == 200


def test_without_a_count_the_cost_is_estimated_and_a_lost_answer_is_counted_too(asking: Asking) -> None:
    prices = {"price_in": 1e6, "price_out": 0, "attempts": 2}
    client = asking.client(**prices)
    before = client.spent
    asking.model.script.extend([cut_off, lambda handler, _: handler.reply(200, '{"choices": []}')])
    prompt = Prompt("", "x" * 400, "line")
    client.ask_all([prompt], lambda _done, _total: None)
    assert client.spent - before == pytest.approx(200)
    client.close()


# ---- the key ----


def test_the_key_reaches_the_endpoint_and_nothing_else(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("LINEUP_LLM_KEY", f" {KEY}\n")
    sent: list[str] = []

    def notes(handler: Any, body: Any) -> None:
        sent.append(handler.headers["Authorization"])
        echoes_headers(200)(handler, body)

    asking.model.script.extend(
        [
            notes,
            echoes_headers(400),
            echoes_headers(200),
            lambda handler, _: handler.reply(200, handler.headers["Authorization"]),
            lambda handler, _: handler.reply(400, handler.headers["Authorization"].replace("/", "\\\\/")),
            lambda handler, _: handler.reply(400, quote(handler.headers["Authorization"], safe="")),
            echoes_headers(401),
        ]
    )
    config = LlmConfig(endpoint=asking.model.address, model="m", concurrency=1, attempts=1)
    client = make_client(config, asking.folder, asking.folder)
    told: list[str] = [repr(client)]
    told += [str(answer) for answer in client.ask_all([number(n) for n in range(6)], lambda *_: None)]
    with pytest.raises(UserError) as error:
        client.ask_all([number(9)], lambda *_: None)
    client.close()
    told += [str(error.value), repr(error.getrepr()), caplog.text]
    told += [path.read_text(encoding="utf-8") for path in asking.folder.rglob("*") if path.is_file()]
    assert sent == [f"Bearer {KEY}"]
    assert "[key]" in "".join(told)
    assert not [text for text in told if "sk-a" in text or "secret" in text]


def test_a_key_that_cannot_be_one_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LINEUP_LLM_KEY", "sk-secret and a comment")
    with pytest.raises(UserError) as error:
        make_client(LlmConfig(endpoint="http://127.0.0.1:9", model="m"), tmp_path, tmp_path)
    assert "secret" not in str(error.value)
