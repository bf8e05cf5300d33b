"""The prompts for a language model, and how its answers are read."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

LONGEST = 1000
"""Characters of an explanation that are kept."""

Form: TypeAlias = Literal["line", "yes_no", "list"]
"""What is wanted: a line of text; the probabilities of yes and no as the first word; a list of zeros and ones."""


class Prompt(NamedTuple):
    """One question to the model. What many questions share comes first, so that servers can keep it."""

    system: str
    user: str
    form: Form
    answers: int = 1
    """How many zeros and ones a list is to have."""


class Question(NamedTuple):
    """The same question about one excerpt and about several."""

    one: str
    several: str


EXPLAIN = """\
You study one latent of a sparse autoencoder: a number that is computed on every token of a text, mostly zero. You \
are given excerpts in which it is not zero. The tokens on which it is strong stand between « and »; under each \
excerpt they are listed with their level, from 1 (weak) to 10 (its strongest here). Find out what these tokens, or \
the words around them, have in common that would let somebody tell on which tokens of other texts the latent is \
active. If it is a matter of single tokens or of spelling, say so plainly; claim no more than the excerpts show. \
Answer with one line of at most 40 words: the explanation and nothing else."""
EXPLANATION = "Explanation:"
"""How the question ends, and what some answers begin with."""

GIVEN = "You are given a description of the tokens on which one latent of a sparse autoencoder is active, and "
YES_NO = " Answer with one word, yes or no."
ANSWER = "Answer (yes or no):"
LIST = """\
 Answer with the JSON object {"answers": [...]} and nothing else: a list of %d numbers in the order of the excerpts, \
1 for yes and 0 for no."""

DETECTION = Question(
    f"{GIVEN}an excerpt of text. Decide whether the latent is active on any of its tokens.",
    f"{GIVEN}numbered excerpts of text. For each excerpt decide whether the latent is active on any of its tokens.",
)
FUZZING = Question(
    f"{GIVEN}an excerpt of text in which some tokens stand between « and ». Decide whether the marked tokens are those"
    " on which the latent is active; they may have been marked wrongly.",
    f"{GIVEN}numbered excerpts of text in which some tokens stand between « and ». For each excerpt decide whether the"
    " marked tokens are those on which the latent is active; they may have been marked wrongly.",
)


def explain(
    tokens: NDArray[np.int32], marked: NDArray[np.bool_], activation: NDArray[np.float32], vocabulary: Sequence[str]
) -> Prompt:
    """Ask what the marked tokens of these contexts (all of them [example, position]) have in common."""
    levels = np.ceil(10 * activation / max(float(activation.max(initial=0)), 1e-9)).astype(int)
    parts = []
    for number, (row, marks, level) in enumerate(zip(tokens, marked, levels, strict=True), start=1):
        listed = ", ".join(f"{_clean(vocabulary[row[at]]).strip()} {level[at]}" for at in np.flatnonzero(marks))
        parts.append(f"Excerpt {number}: {excerpt(row, marks, vocabulary)}\nLevels: {listed}")
    return Prompt(EXPLAIN, "\n\n".join([*parts, EXPLANATION]), "line")


def judge_one(question: Question, explanation: str, text: str) -> Prompt:
    """Put a question about one excerpt to an explanation."""
    return Prompt(question.one + YES_NO, f"Description: {explanation}\n\nExcerpt: {text}\n\n{ANSWER}", "yes_no")


def judge_several(question: Question, explanation: str, texts: Sequence[str]) -> Prompt:
    """Put a question about each of these excerpts to an explanation."""
    parts = [f"Excerpt {number}: {text}" for number, text in enumerate(texts, start=1)]
    user = "\n\n".join([f"Description: {explanation}", *parts])
    return Prompt(question.several + LIST % len(texts), user, "list", len(texts))


def excerpt(tokens: NDArray[np.int32], marked: NDArray[np.bool_], vocabulary: Sequence[str]) -> str:
    """The text on one line, each run of marked tokens between « and »."""
    parts: list[str] = []
    inside = False
    for token, mark in zip(tokens.tolist(), marked.tolist(), strict=True):
        if mark != inside:
            parts.append("«" if mark else "»")
            inside = mark
        parts.append(_clean(vocabulary[token]))
    return "".join([*parts, "»" if inside else ""])


def _clean(text: str) -> str:
    """No line breaks, and no marks but ours."""
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("«", "‹").replace("»", "›")


class Explanation(NamedTuple):
    """What an answer explains; `text` is None where that is nothing, and `reason` says why, or what was cut off."""

    text: str | None
    reason: str = ""


TOO_LONG = "too long: the answer did not end within autointerp.llm.max_tokens"


CHAT_MARKS = re.compile(r"<\|[^|>\s]*\|>|<(?:start|end)_of_turn>")
"""Ends of turns that a model writes out as text, where its template is another's."""


def read_explanation(answer: str, cut: bool) -> Explanation:
    """The first line that says something: thoughts, marks of a chat template and announcements left out. One that was
    cut off counts as far as its last whole sentence, and says so.
    """
    lines = answer.rpartition("</think>")[2].splitlines()
    for number, line in enumerate(lines, start=1):
        said = CHAT_MARKS.sub("", line).strip()
        text = re.sub(rf"^\W*{EXPLANATION}", "", said, flags=re.IGNORECASE).strip(" \t*#")
        if not re.search(r"\w", text) or text.endswith(":"):
            continue
        if REFUSAL.match(text):
            return Explanation(None, "refused")
        if not (cut and number == len(lines)) and len(text) <= LONGEST:
            return Explanation(text)
        whole = _whole_sentences(text[:LONGEST])
        return Explanation(whole, "cut off at the end of a sentence") if whole else Explanation(None, TOO_LONG)
    return Explanation(None, TOO_LONG if cut else unread(answer))


def _whole_sentences(text: str) -> str:
    """A text up to the end of its last whole sentence; empty where it has none."""
    found = re.match(r".*[.!?][\"'”’)]*(?=\s|$)", text)
    return found[0] if found else ""


ZEROS_AND_ONES = re.compile(r"\[\s*[01]\s*(?:,\s*[01]\s*)*\]")


def read_answers(answer: str, count: int) -> list[int] | None:
    """The zeros and ones: the last list of them if it has the right length."""
    found = ZEROS_AND_ONES.findall(answer)
    digits = [int(digit) for digit in re.findall("[01]", found[-1])] if found else []
    return digits if len(digits) == count else None


def yes_and_no(likeliest: Mapping[str, float]) -> tuple[float, float]:
    """P(yes) and P(no), from the log-probabilities of the likeliest tokens; case and space around them do not matter.

    One that is not among them counts as zero.
    """
    weight = {"yes": 0.0, "no": 0.0}
    for token, log_probability in likeliest.items():
        word = token.strip().casefold()
        if word in weight:
            weight[word] += math.exp(log_probability)
    return weight["yes"], weight["no"]


REFUSAL = re.compile(
    r"^\W*(?:I['’]?m sorry|I am sorry|Sorry,|I can(?:['’]t|not|not)|I won['’]t|I am unable|I'm unable)", re.I
)


def unread(answer: str) -> str:
    """Why an answer could not be read: a reason for people."""
    if REFUSAL.match(answer):
        return "refused"
    return f"unparsed: {' '.join(answer.split())[:80]!r}"


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
