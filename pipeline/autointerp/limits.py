"""Rate limits and budget for requests to a language model."""

import threading
from collections import deque
from collections.abc import Callable

from core.errors import UserError
from pipeline.config import LlmConfig

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
