"""Asks a language model, each question once, within limits, with retries."""

import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import tenacity

from core.errors import UserError
from core.files import replacing, writing
from pipeline.autointerp.endpoint import KEY, Budget, Endpoint, LocalEndpoint, Pace, RequestError, TransientError
from pipeline.autointerp.prompts import Answer, Form, Prompt, read, usage_of, yes_and_no
from pipeline.config import LlmConfig
from pipeline.llama import LOCAL, Llama
from pipeline.progress import Advance

LONGEST_WAIT_SECONDS = 600.0
GIVE_UP_AFTER = 20
"""Requests in a row that failed in all their attempts: the endpoint is down."""


class Option(NamedTuple):
    """What not every endpoint can do: how it is asked for, with what it is tried, and whether the answer shows it."""

    body: Mapping[str, Any]
    probe: Prompt
    shown: Callable[[Answer], bool] = lambda _: True


def _says_yes(answer: Answer) -> bool:
    return sum(yes_and_no(answer.likeliest)) >= LEAST_MASS


LEAST_MASS = 0.01
"""Of yes and no together, where the model is told to say yes: less where its first words are thoughts."""
LINE = Prompt("", "Answer with the word yes and nothing else.", "line")
OPTIONS: dict[str, Option] = {
    "seed": Option({"seed": 0}, LINE),
    "stop": Option({"stop": ["\n"]}, LINE, lambda answer: answer.text is not None and "<think" not in answer.text),
    "logprobs": Option({"logprobs": True, "top_logprobs": 20}, LINE._replace(form="yes_no"), _says_yes),
    "few_logprobs": Option({"logprobs": True, "top_logprobs": 5}, LINE._replace(form="yes_no"), _says_yes),
    "json": Option(
        {"response_format": {"type": "json_object"}},
        Prompt("", 'Answer with the JSON object {"answers": [1]} and nothing else.', "list"),
    ),
}
ALTERNATIVES = {"few_logprobs": "logprobs"}
"""What is needed only where the other cannot be had."""
FORMS: dict[Form, tuple[str, ...]] = {
    "line": ("seed", "stop"),
    "yes_no": ("seed", "logprobs", "few_logprobs"),
    "list": ("seed", "json"),
}
"""The options that a form of answer is asked for with."""


ENDED = "Not sent, because another request has ended the run."


class _StoppedError(UserError):
    """Of no interest beside the error that ended the run."""


class Client:
    """One endpoint and model, and all answers that were ever had from it in this study.

    What it can do is asked once and remembered beside the answers. `llama` is a model on this machine, which is asked
    in place of an address, and closed with the client. `sleep` and `clock` are for tests.
    """

    def __init__(
        self,
        config: LlmConfig,
        folder: Path,
        key: str,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        llama: Llama | None = None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._endpoint = (
            LocalEndpoint(llama, config.timeout_seconds, clock)
            if llama
            else Endpoint(config.endpoint, key, config.timeout_seconds, clock)
        )
        self._stopped = threading.Event()
        self._sleep = sleep or self._nap
        self._pace = Pace(config, clock, self._sleep)
        self._budget = Budget(config)
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self.unanswered = 0
        """Prompts that got no answer in this run, so that asking again may help."""
        self._able: dict[str, bool] | None = None
        self._cache = AnswerCache(folder)
        for request, raw in self._cache.all():
            self._budget.settle(0.0, self._cost(request, raw))

    def _nap(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _StoppedError(ENDED)

    @property
    def damaged(self) -> int:
        """Answers that were kept, but not as they were: they are asked for again."""
        return self._cache.damaged

    @property
    def spent(self) -> float:
        """What the answers in the cache, and those that this run paid for and did not get, cost."""
        return self._budget.spent

    @property
    def identity(self) -> str:
        """What the answers depend on, beside the model's name: the address, or a local model's content."""
        return self._endpoint.identity

    @property
    def gives_probabilities(self) -> bool:
        """Whether questions can be answered by the probabilities of yes and no."""
        able = self.abilities()
        return any(able.get(name, False) for name in FORMS["yes_no"] if "logprobs" in OPTIONS[name].body)

    def abilities(self) -> dict[str, bool]:
        """Which of `OPTIONS` the endpoint can do; asks it unless that is known. Raises UserError if it cannot."""
        known = canonical_hash(self._endpoint.identity, {"model": self._config.model})[:16]
        path = self._folder / f"endpoint-{known}.json"
        if self._able is None and path.exists():
            self._able = _abilities(path.read_text(encoding="utf-8", errors="replace"))
        if self._able is None and not self._config.offline:
            self._able = self._probe()
            _keep(json.dumps(self._able), path)
        return self._able or {}

    def _probe(self) -> dict[str, bool]:
        try:
            self._answered(self._body(LINE, {}))
        except RequestError as failed:
            raise UserError(
                f"The model '{self._config.model}' at {self._endpoint.address} does not answer: {failed}. Check"
                " autointerp.llm.endpoint and .model, and that the server runs."
            ) from None
        able: dict[str, bool] = {}
        for name, option in OPTIONS.items():
            needed = not able.get(ALTERNATIVES.get(name, ""), False)
            able[name] = needed and self._can(name, option, {"seed": able.get("seed", False)})
        return able

    def _can(self, name: str, option: Option, able: Mapping[str, bool]) -> bool:
        try:
            answer = read(self._answered(self._body(option.probe, {**able, name: True})))
        except TransientError as failed:
            if failed.status == 500:  # what some servers say to a parameter that they do not know
                return False
            raise UserError(
                f"{self._endpoint.address} did not say whether it supports {name}: {failed}."
                " Run the same command again."
            ) from None
        except RequestError:
            return False
        return option.shown(answer)

    def ask_all(self, prompts: Sequence[Prompt], advance: Advance) -> list[Answer]:
        """The answers, in order; `advance` counts them. Raises UserError where asking on makes no sense: the money
        is spent, the key is wrong, the endpoint is down. What is answered until then is kept.
        """
        if not prompts:
            return []
        self.abilities()
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            futures = [pool.submit(self._ask, prompt) for prompt in prompts]
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    error = future.exception()
                    if error and not isinstance(error, _StoppedError):
                        raise error
                    advance(done, len(futures))
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _ask(self, prompt: Prompt) -> Answer:
        try:
            return self._tried(prompt)
        except UserError:
            self._stopped.set()
            raise

    def _tried(self, prompt: Prompt) -> Answer:
        try:
            return read(self._answered(self._body(prompt, self.abilities())))
        except TransientError as failed:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= GIVE_UP_AFTER:
                raise UserError(
                    f"{self._endpoint.address} failed {GIVE_UP_AFTER} requests in a row, {self._config.attempts}"
                    f" attempts each, at last with: {failed}. What is answered is kept: run the same command again"
                    " when it is back."
                ) from None
            return self._without(failed)
        except RequestError as failed:
            return self._without(failed)

    def _without(self, failed: RequestError) -> Answer:
        with self._lock:
            self.unanswered += 1
        return Answer(None, str(failed))

    def _body(self, prompt: Prompt, able: Mapping[str, bool]) -> dict[str, Any]:
        """The request, which is also what the cache knows it by."""
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [*system, {"role": "user", "content": prompt.user}],
            "max_tokens": 1 if prompt.form == "yes_no" else self._config.max_tokens,
            "temperature": 0,
        }
        for name in FORMS[prompt.form]:
            body |= OPTIONS[name].body if able.get(name) else {}
        return body

    def _answered(self, body: Mapping[str, Any]) -> str:
        """The raw answer, from the cache or else from the endpoint; in the cache before anybody reads it."""
        key = canonical_hash(self._endpoint.identity, body)
        known = self._cache.get(key)
        if known is not None:
            return known
        if self._config.offline:
            raise RequestError("offline: not in the cache")
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(self._config.attempts),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
        )
        raw = retrying(self._send, body)
        self._cache.put(key, body, raw)
        self._failed_in_a_row = 0
        return raw

    def _send(self, body: Mapping[str, Any]) -> str:
        """One attempt, within the limits."""
        characters, longest = _characters(body), int(body["max_tokens"])
        self._pace.wait(round(self._budget.tokens(characters)) + longest)
        if self._stopped.is_set():
            raise _StoppedError(ENDED)
        reserved = self._budget.reserve(characters, longest)
        cost = 0.0
        try:
            raw = self._endpoint.post(body)
            cost = self._cost(body, raw)
        except TransientError as failed:
            cost = reserved if failed.paid else 0.0
            raise
        finally:
            self._budget.settle(reserved, cost)
        return raw

    def _cost(self, request: Mapping[str, Any], raw: str) -> float:
        characters, usage = _characters(request), usage_of(raw)
        if usage is None:
            said = min(self._budget.tokens(len(raw)), request["max_tokens"])
            return self._budget.price(self._budget.tokens(characters), said)
        self._budget.counted(characters, usage.prompt)
        return self._budget.price(*usage)

    def close(self) -> None:
        """Let go of the connections and the file."""
        self._endpoint.close()
        self._cache.close()


def make_client(config: LlmConfig, folder: Path, models: Path) -> Client:
    """The client of a study, its answers kept in `folder`; the key comes from the environment variable LINEUP_LLM_KEY.

    Local models in pieces are joined in `models`. Raises UserError, which does not show it, for a key that cannot be
    one, and where a local model cannot be found.
    """
    if config.endpoint == LOCAL:
        return Client(config, folder, "", llama=Llama(config.model, models, config.concurrency))
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[A-Za-z0-9._~+/=:-]*", key):  # the alphabet of bearer tokens (RFC 6750), and colons
        raise UserError(f"{KEY} holds characters that no key has, such as spaces or quotes: set it to the key alone.")
    return Client(config, folder, key)


def _abilities(text: str) -> dict[str, bool] | None:
    """What was remembered of an endpoint; None where that is damaged, and so has to be asked again."""
    try:
        known = json.loads(text)
    except ValueError:
        return None
    return known if isinstance(known, dict) and known.keys() == OPTIONS.keys() else None


def _keep(text: str, path: Path) -> None:
    with writing(path), replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


_backoff = tenacity.wait_random_exponential(multiplier=1, max=60)  # its chance decides when, never what


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds: what the endpoint asked for, else exponential backoff with jitter."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, TransientError) and error.after is not None:
        return min(error.after, LONGEST_WAIT_SECONDS)
    return float(_backoff(state))


def _characters(request: Mapping[str, Any]) -> int:
    return sum(len(message["content"]) for message in request["messages"])


def canonical_hash(endpoint: str, body: Mapping[str, Any]) -> str:
    """SHA-256 of address, model, messages and parameters; the address counts, for a name alone names no model."""
    text = json.dumps({"endpoint": endpoint, **body}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


SEAL = b', "sha256": "'
"""What stands between a line and the hash of what comes before."""


class AnswerCache:
    """A file of one line for each answer, only ever appended to; a line is as it was written or it does not count.

    Raises UserError where the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "answers.jsonl"
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        self.damaged = 0
        """Lines that do not count."""
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._index()

    def _index(self) -> None:
        end, torn = 0, False
        with self._path.open("rb") as lines:
            for line in lines:
                if _sealed(line[: line.rfind(SEAL)]) == line:
                    self._places[json.loads(line)["key"]] = (end, len(line))
                else:
                    self.damaged += 1
                end += len(line)
                torn = not line.endswith(b"\n")
        if end and torn:  # a killed run's last line: it must not swallow the next one
            self._write(b"\n")

    def get(self, key: str) -> str | None:
        """The raw answer to the request with this hash."""
        place = self._places.get(key)
        return None if place is None else str(self._read(*place)["answer"])

    def put(self, key: str, request: Mapping[str, Any], answer: str) -> None:
        """Keep an answer."""
        line = json.dumps({"key": key, "request": request, "answer": answer}, ensure_ascii=False)
        data = _sealed(line.removesuffix("}").encode(errors="replace"))
        with self._lock, writing(self._path):
            end = os.fstat(self._file).st_size
            try:
                self._write(data)
            except OSError:
                os.ftruncate(self._file, end)  # a torn line would swallow the next one
                raise
            self._places[key] = (end, len(data))

    def all(self) -> Iterator[tuple[Mapping[str, Any], str]]:
        """Requests and answers."""
        for place in list(self._places.values()):
            record = self._read(*place)
            yield record["request"], record["answer"]

    def _write(self, data: bytes) -> None:
        if os.write(self._file, data) != len(data):
            raise OSError(errno.ENOSPC, "")

    def _read(self, start: int, length: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(os.pread(self._file, length, start))
        return record

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _sealed(record: bytes) -> bytes:
    """The whole line of a record, which lacks its closing bracket."""
    return record + SEAL + hashlib.sha256(record).hexdigest().encode() + b'"}\n'
