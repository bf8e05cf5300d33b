"""Reads the raw body of a chat completion: its words, its probabilities, or why there are none."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What the model said; `text` is None where it said nothing that can be used, and `reason` says why."""

    text: str | None
    reason: str = ""
    cut: bool = False
    """Whether it was to go on, but had come to the longest answer that was asked for."""
    likeliest: Mapping[str, float] = {}
    """Log-probabilities of the likeliest first tokens; empty without those."""


class Usage(NamedTuple):
    """Tokens that were paid for."""

    prompt: int
    answer: int


def body_of(raw: str) -> dict[str, Any] | None:
    """The body as JSON, None where it was cut off or is something else."""
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def read(raw: str) -> Answer:
    """What the model said; its failures have a reason and no text."""
    choice = _first((body_of(raw) or {}).get("choices"))
    message = _mapping(choice.get("message"))
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        return Answer(None, "refused")
    text, likeliest = message.get("content"), _likeliest(choice)
    if not isinstance(text, str) or not text.strip():
        return Answer(None, "unparsed: no text", likeliest=likeliest)
    return Answer(text, cut=choice.get("finish_reason") == "length", likeliest=likeliest)


def _likeliest(choice: Mapping[str, Any]) -> dict[str, float]:
    first = _first(_mapping(choice.get("logprobs")).get("content"))
    try:
        return {str(other["token"]): float(other["logprob"]) for other in first.get("top_logprobs") or ()}
    except (TypeError, KeyError, ValueError):
        return {}


def usage_of(raw: str) -> Usage | None:
    """Tokens that the endpoint counted, None where it does not say."""
    usage = _mapping((body_of(raw) or {}).get("usage"))
    prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Usage(prompt, answer) if isinstance(prompt, int) and isinstance(answer, int) else None


def _first(items: Any) -> Mapping[str, Any]:
    return _mapping(items[0]) if isinstance(items, list) and items else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
