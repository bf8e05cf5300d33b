"""One attempt at one request to an OpenAI-compatible endpoint, and what may be asked for: rates and money."""

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from core.errors import UserError
from pipeline.autointerp.prompts import body_of
from pipeline.config import LlmConfig
from pipeline.llama import LOCAL, Llama

KEY = "LINEUP_LLM_KEY"
SHORTEST_KEY = 8
"""Shorter ones are the placeholders that local servers want, such as 'none'; they are no secrets."""
TRANSIENT = frozenset({408, 409, 429, *range(500, 600)} - {501})
"""Statuses after which a request is sent again; 501 says that the endpoint cannot do what it is asked to."""
WRONG_SETTING = frozenset({401, 402, 403, 404})
"""Statuses that every other request would get as well."""
LARGEST_BODY = 16 * 2**20


class RequestError(Exception):
    """A request that has no answer, and why: on one line, short, without the key."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class TransientError(RequestError):
    """One that may have an answer next time."""

    def __init__(
        self, reason: str, status: int | None = None, after: float | None = None, *, paid: bool = False
    ) -> None:
        super().__init__(reason, status)
        self.after = after
        """Seconds to wait, if the endpoint said so."""
        self.paid = paid
        """Whether the endpoint may have worked on it, and charge for it."""


class Endpoint:
    """`address`/chat/completions; the key is sent, and taken out of everything that comes back.

    `identity` is what answers are kept by.
    """

    def __init__(
        self, address: str, key: str, timeout_seconds: float, clock: Callable[[], float], *, proxies: bool = True
    ) -> None:
        self.address = self.identity = address.rstrip("/")
        self._secret = _spellings(key) if len(key) >= SHORTEST_KEY else None
        self._key_is_set = bool(key)
        self._timeout = timeout_seconds
        self._clock = clock
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=timeout_seconds, trust_env=proxies)

    def post(self, body: Mapping[str, Any]) -> str:
        """The raw answer, whole; raises TransientError, RequestError, and UserError where no request would do."""
        try:
            status, headers, raw = self._exchange(body)
        except httpx.TimeoutException:
            raise TransientError(f"timeout after {self._timeout:g} s", paid=True) from None
        except httpx.RemoteProtocolError as error:
            raise TransientError(self._clean(f"the answer was cut off: {error}"), paid=True) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransientError(self._clean(f"{type(error).__name__}: {error}")) from None
        self._check(status, headers, raw)
        return raw

    def _exchange(self, body: Mapping[str, Any]) -> tuple[int, httpx.Headers, str]:
        deadline = self._clock() + self._timeout
        content = bytearray()
        with self._http.stream("POST", f"{self._place()}/chat/completions", json=body) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if self._clock() > deadline:  # one that sends a byte now and then never times out by itself
                    raise httpx.ReadTimeout("slow")
                if len(content) > LARGEST_BODY:
                    raise RequestError(f"the answer has more than {LARGEST_BODY} bytes")
        return response.status_code, response.headers, self._without_key(content.decode(errors="replace"))

    def _place(self) -> str:
        return self.address

    def _check(self, status: int, headers: httpx.Headers, raw: str) -> None:
        """Raise for everything but a whole answer."""
        body = body_of(raw)
        if status == 200 and body is None:
            raise TransientError(self._clean(f"the answer was cut off or is no JSON: {raw[:80]!r}"), paid=True)
        status = _said_status(body) if status == 200 and body is not None else status
        if status == 200:
            return
        reason = self._clean(f"HTTP {status}: {_message(body, raw)}")
        if status in TRANSIENT:
            raise TransientError(reason, status, _retry_after(headers.get("Retry-After")))
        if status in WRONG_SETTING:
            raise UserError(
                f"{self.address} refuses every request: {reason}. Check autointerp.llm.endpoint and .model, and"
                f" {KEY} in the environment ({'set' if self._key_is_set else 'not set'})."
            )
        raise RequestError(reason, status)

    def _clean(self, text: str) -> str:
        return self._without_key(" ".join(text.split()))[:200]

    def _without_key(self, text: str) -> str:
        return self._secret.sub("[key]", text) if self._secret else text

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()


class LocalEndpoint(Endpoint):
    """llama.cpp's server on this machine, which the first request starts."""

    def __init__(self, llama: Llama, timeout_seconds: float, clock: Callable[[], float]) -> None:
        super().__init__(LOCAL, "", timeout_seconds, clock, proxies=False)
        self.identity = llama.identity
        self._llama = llama

    def _place(self) -> str:
        found = self._llama.address()
        self._http.headers["Authorization"] = f"Bearer {found.key}"
        return found.url

    def close(self) -> None:
        """End the server too."""
        super().close()
        self._llama.close()


def _spellings(key: str) -> re.Pattern[str]:
    """The key as it may come back: its signs plain, behind backslashes, as \\u002f or as %2F."""
    parts = [c if c.isalnum() else rf"(?:\\*{re.escape(c)}|\\+u00{ord(c):02x}|%{ord(c):02x})" for c in key]
    return re.compile("".join(parts), flags=re.IGNORECASE)


def _said_status(body: Mapping[str, Any]) -> int:
    """Some gateways send errors with status 200 and the true one inside."""
    if "error" not in body or "choices" in body:
        return 200
    code = body["error"].get("code") if isinstance(body["error"], Mapping) else None
    return code if isinstance(code, int) else 500


def _retry_after(text: str | None) -> float | None:
    """Seconds from now, from a number or a date."""
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _message(body: Mapping[str, Any] | None, raw: str) -> str:
    """What an error body says."""
    error = (body or {}).get("error", raw)
    return str(error.get("message", error) if isinstance(error, Mapping) else error)


MINUTE = 60.0
CHARACTERS_PER_TOKEN = 4
"""A rough guess, for what is not counted yet."""
LONG = 1000
"""Characters from which a prompt's tokens are mostly its own, not those that the endpoint puts around it."""


class Pace:
    """Keeps the requests and tokens of any minute under the limits; a request larger than the limit goes alone."""

    def __init__(self, config: LlmConfig, clock: Callable[[], float], sleep: Callable[[float], object]) -> None:
        self._requests = config.requests_per_minute
        self._tokens = config.tokens_per_minute
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._sent: deque[tuple[float, int]] = deque()

    def wait(self, tokens: int) -> None:
        """Return when a request of so many tokens, prompt and answer, may be sent; it then counts as sent."""
        while (seconds := self._seconds_to_wait(tokens)) > 0:
            self._sleep(seconds)

    def _seconds_to_wait(self, tokens: int) -> float:
        with self._lock:
            now = self._clock()
            while self._sent and now - self._sent[0][0] >= MINUTE:
                self._sent.popleft()
            if self._full(tokens):
                return self._sent[0][0] + MINUTE - now
            self._sent.append((now, tokens))
            return 0.0

    def _full(self, tokens: int) -> bool:
        if not self._sent:
            return False
        used = sum(each for _, each in self._sent)
        too_many = self._requests is not None and len(self._sent) >= self._requests
        return too_many or (self._tokens is not None and used + tokens > self._tokens)


class Budget:
    """Counts money: the longest possible answer is set aside before a request is sent, what it took afterwards.

    What earlier runs paid, which is the answers in the cache, counts as spent.
    """

    def __init__(self, config: LlmConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._reserved = 0.0
        self.spent = 0.0
        self._characters_per_token = float(CHARACTERS_PER_TOKEN)

    def price(self, prompt_tokens: float, answer_tokens: float) -> float:
        """Of so many tokens."""
        return (prompt_tokens * self._config.price_in + answer_tokens * self._config.price_out) / 1e6

    def tokens(self, characters: int) -> float:
        """Tokens of a text: the densest that this run has seen counted, four characters each to begin with."""
        return characters / self._characters_per_token

    def reserve(self, characters: int, answer_tokens: int) -> float:
        """Set aside the most that a request may cost; raises UserError where that is more than there is."""
        limit = self._config.max_cost
        with self._lock:
            most = self.price(self.tokens(characters), answer_tokens)
            if limit is not None and self.spent + self._reserved + most > limit:
                raise UserError(
                    f"The language model has cost {self.spent:.4f}, answers in the cache included, and the next request"
                    f" may take it past autointerp.llm.max_cost {limit:g}: raise that and run the same command again;"
                    " what is answered is kept."
                )
            self._reserved += most
        return most

    def settle(self, reserved: float, cost: float) -> None:
        """What was set aside has turned out to cost this much."""
        with self._lock:
            self._reserved -= reserved
            self.spent += cost

    def counted(self, characters: int, prompt_tokens: int) -> None:
        """Learn from a prompt whose tokens the endpoint has counted."""
        if characters >= LONG and prompt_tokens > 0:
            with self._lock:
                self._characters_per_token = min(self._characters_per_token, characters / prompt_tokens)
