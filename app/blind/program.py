"""Programs that rate: they get trials from a server's JSON API and answer by a rule or with a language model."""

import json
import math
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from core.errors import UserError

Trial: TypeAlias = Mapping[str, Any]
"""A trial as /api/blind/trial gives it: `latent`, or `left` and `right`, each with `contexts` of [text, level]."""
Judge: TypeAlias = Callable[[Trial], int]
"""From a trial to an answer, 1 to 6."""

RETRIES = 5
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Http:
    """JSON over HTTP with a bearer token; a request that was cut off or refused for load is sent again."""

    base: str
    token: str = ""
    patience: float = PATIENCE_SECONDS

    def __call__(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """GET, or POST of a body; raises UserError with what the server said."""
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        for attempt in range(RETRIES):
            request = urllib.request.Request(self.base + path, data=data, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=self.patience) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                if error.code not in (429, 500, 502, 503, 504) or attempt == RETRIES - 1:
                    raise UserError(f"{self.base}{path} answered {error.code}: {_said(error)}") from error
                wait = _seconds(error.headers.get("Retry-After"), 2.0**attempt)
            except (OSError, ValueError, HTTPException) as error:
                if attempt == RETRIES - 1:
                    raise UserError(f"Cannot reach {self.base}{path}: {error}. Is the server running?") from error
                wait = 2.0**attempt
            time.sleep(min(wait, 30.0))
        raise AssertionError


def _said(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        parsed = json.loads(text)
        return " ".join(str(parsed[key]) for key in ("message", "advice") if parsed.get(key))
    except (ValueError, TypeError, AttributeError, KeyError):
        return " ".join(text.split())[:200]


def _seconds(text: str | None, otherwise: float) -> float:
    return float(text) if text and text.isdecimal() else otherwise


def new_experiment(server: str, design: Mapping[str, Any]) -> dict[str, Any]:
    """Have a running server make an experiment; gives its addresses."""
    return Http(server.rstrip("/"))("/api/blind/experiments", design)


def label_all(
    invitation: str, judge: Judge, pseudonym: str | None, say: Callable[[str], None], client: str = ""
) -> dict[str, Any]:
    """Join by an invitation link, answer every trial, and give the result, if raters are told theirs.

    `client` says which program this is: of each, one session in an experiment counts. A judge here remembers nothing of
    other experiments, so it is another client in each.
    """
    base, invite = _split(invitation)
    named = {"client": f"{client[:100]} in {invite}"} if client else {}
    joined = Http(base)("/api/blind/sessions", {"invite": invite, "pseudonym": pseudonym} | named)
    server = Http(base, joined["token"])
    say(f"joined “{joined['title']}” as {joined['pseudonym']}: {joined['total']} trials")
    if joined.get("practice"):
        say(joined["practice"])
    while not (trial := server("/api/blind/trial"))["finished"]:
        started = time.monotonic()
        answer = judge(joined | trial)
        seconds = time.monotonic() - started
        server(
            "/api/blind/answers",
            {"trial": trial["trial"], "revision": trial["revision"], "answer": answer, "seconds": seconds},
        )
        if (trial["done"] + 1) % 20 == 0:
            say(f"{trial['done'] + 1} of {trial['total']}")
    try:
        return server("/api/blind/result")
    except UserError as error:
        return {"told": str(error)}


def _split(invitation: str) -> tuple[str, str]:
    parts = urlsplit(invitation)
    base, found, invite = parts.path.rpartition("/blind/join/")
    if not (parts.scheme and parts.netloc and found and invite):
        raise UserError(f"'{invitation}' is no invitation; one looks like http://127.0.0.1:8000/blind/join/TOKEN.")
    return f"{parts.scheme}://{parts.netloc}{base}", invite.strip("/")


# ---- a rule that needs no language model ----


def single_token_share(latent: Mapping[str, Any]) -> float:
    """Share of a latent's contexts whose strongest token is the commonest of those, case and spaces aside."""
    peaks = [max(texts, key=lambda cell: cell[1])[0].strip().casefold() for texts in latent["contexts"]]
    return Counter(peaks).most_common(1)[0][1] / len(peaks)


def most_single_token(trial: Trial) -> int:
    """Call a latent random when its contexts peak on one token: such latents survive random weights.

    Of two, the one that does so more is called random. Sure where the difference is large.
    """
    if "latent" in trial:
        doubt = 0.5 - single_token_share(trial["latent"])
    else:
        doubt = (single_token_share(trial["left"]) - single_token_share(trial["right"])) / 2
    step = min(2, int(abs(doubt) * 6))
    return 4 + step if doubt > 0 else 3 - step


# ---- a language model behind an OpenAI-compatible endpoint ----


@dataclass(frozen=True)
class LanguageModel:
    """Asks a chat model for each answer; an answer that is none is asked for again, then the run ends with an error."""

    endpoint: str
    model: str
    key: str = ""
    attempts: int = 3
    by_probability: bool = False
    """Whether its answer is the likeliest of the six numbers as its first word, which small models have too."""

    def __call__(self, trial: Trial) -> int:
        """The model's answer, 1 to 6; raises UserError when it gives none."""
        messages = [
            {"role": "system", "content": "\n\n".join(trial["rubric"])},
            {"role": "user", "content": _prompt(trial)},
        ]
        http = Http(self.endpoint.rstrip("/"), self.key, patience=300)
        if self.by_probability:
            return self._likeliest(http, messages)
        said = ""
        for attempt in range(self.attempts):
            body = {
                "model": self.model,
                "messages": messages,
                "max_tokens": 512,
                "temperature": 0 if attempt == 0 else 1,
            }
            answer = http("/chat/completions", body)
            try:
                said = str(answer["choices"][0]["message"]["content"] or "")
            except (KeyError, IndexError, TypeError):
                said = json.dumps(answer)[:200]
            numbers = re.findall(r"\b[1-6]\b", said)
            if numbers:
                return int(numbers[-1])
        raise UserError(
            f"The model {self.model} gave no answer from 1 to 6 in {self.attempts} attempts: {said[:200]!r}"
        )

    def _likeliest(self, http: Http, messages: Sequence[Mapping[str, str]]) -> int:
        body = {"model": self.model, "messages": messages, "max_tokens": 1, "temperature": 0}
        answer = http("/chat/completions", body | {"logprobs": True, "top_logprobs": 20})
        try:
            first = answer["choices"][0]["logprobs"]["content"][0]
            words = [(each["logprob"], each["token"]) for each in first["top_logprobs"]]
        except (KeyError, IndexError, TypeError):
            words = []
        numbers = [(chance, int(word)) for chance, word in words if word.strip() in {"1", "2", "3", "4", "5", "6"}]
        if not numbers:
            raise UserError(f"The model {self.model} has no number from 1 to 6 among its likeliest words.")
        return max(numbers)[1]


def _prompt(trial: Trial) -> str:
    shown = [name for name in ("latent", "left", "right") if name in trial]
    parts = [f"{name.capitalize()}:\n{_written(trial[name]['contexts'])}" for name in shown]
    scale = "; ".join(f"{number} = {text}" for number, text in sorted(trial["answers"].items()))
    extra = [f"{name}: {_rest(trial[name])}" for name in shown if _rest(trial[name])]
    return "\n\n".join(
        [
            "Below are texts on which a latent was active. Tokens on which it was are written <<token:level>>,"
            " level from 1 (weak) to 9 (its strongest here).",
            *parts,
            *extra,
            f"{trial['question']}\nAnswer with one number: {scale}.",
        ]
    )


def _written(contexts: Sequence[Sequence[Sequence[Any]]]) -> str:
    lines = ("".join(f"<<{text}:{level}>>" if level else str(text) for text, level in texts) for texts in contexts)
    return "\n".join(f"{number}. {' '.join(line.split())}" for number, line in enumerate(lines, start=1))


def _rest(latent: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in latent.items() if key != "contexts" and _finite(value)}
    return json.dumps(rest, ensure_ascii=False) if rest else ""


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
