"""The words put to a language model, and how its answers are read: contexts come in, prompts and numbers go out."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LONGEST = 1000
"""Characters of an explanation that are kept."""


class Prompt(NamedTuple):
    """One question to the model."""

    system: str
    user: str
    answers: int
    """How many zeros and ones it is to answer with; 0 asks for words."""


class Token(NamedTuple):
    """A token of an answer and the log-probabilities of the likeliest tokens in its place, itself among them."""

    text: str
    alternatives: dict[str, float]


EXPLAIN = """\
You study one latent of a sparse autoencoder: a number that is computed on every token of a text, mostly zero. You \
are given excerpts in which it is not zero. The tokens on which it is strong stand between « and »; under each \
excerpt they are listed with their level, from 1 (weak) to 10 (its strongest here). Find out what these tokens, or \
the words around them, have in common that would let somebody tell on which tokens of other texts the latent is \
active. If it is a matter of single tokens or of spelling, say so plainly; claim no more than the excerpts show. \
Think briefly if you need to, then end with one line of at most 40 words that begins with EXPLANATION:"""

DETECTION = """\
You are given a description of the tokens on which one latent of a sparse autoencoder is active, and numbered \
excerpts of text. For each excerpt decide whether the latent is active on any of its tokens."""

FUZZING = """\
You are given a description of the tokens on which one latent of a sparse autoencoder is active, and numbered \
excerpts of text in which some tokens stand between « and ». For each excerpt decide whether the marked tokens are \
those on which the latent is active; they may have been marked wrongly."""

ANSWER = """\
 Answer with the JSON object {"answers": [...]} and nothing else: a list of %d numbers in the order of the excerpts, \
1 for yes and 0 for no."""


def explain(
    tokens: NDArray[np.int32], marked: NDArray[np.bool_], activation: NDArray[np.float32], vocabulary: Sequence[str]
) -> Prompt:
    """Ask what the marked tokens of these contexts (all of them [example, position]) have in common."""
    levels = np.ceil(10 * activation / max(float(activation.max(initial=0)), 1e-9)).astype(int)
    parts = []
    for number, (row, marks, level) in enumerate(zip(tokens, marked, levels, strict=True), start=1):
        listed = ", ".join(f"{_clean(vocabulary[row[at]]).strip()} {level[at]}" for at in np.flatnonzero(marks))
        parts.append(f"Excerpt {number}: {excerpt(row, marks, vocabulary)}\nLevels: {listed}")
    return Prompt(EXPLAIN, "\n\n".join(parts), 0)


def judge(
    question: str,
    explanation: str,
    tokens: NDArray[np.int32],
    marked: NDArray[np.bool_],
    vocabulary: Sequence[str],
) -> Prompt:
    """Put a question about each of these contexts ([example, position]) to an explanation."""
    parts = [
        f"Excerpt {number}: {excerpt(row, marks, vocabulary)}"
        for number, (row, marks) in enumerate(zip(tokens, marked, strict=True), start=1)
    ]
    text = "\n\n".join([f"Description: {explanation}", *parts])
    return Prompt(question + ANSWER % len(tokens), text, len(tokens))


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


def read_explanation(answer: str) -> str | None:
    """The last line that begins with EXPLANATION:, None where there is none."""
    found = re.findall(r"^[ \t*#]*EXPLANATION:[ \t*]*(\S.*?)[ \t*]*$", answer, flags=re.MULTILINE)
    return found[-1][:LONGEST] if found else None


LIST = re.compile(r"\[\s*[01]\s*(?:,\s*[01]\s*)*\]")


def read_answers(answer: str, count: int) -> list[tuple[int, int]] | None:
    """The zeros and ones, and their places in the text: the last list of them if it has the right length."""
    found = list(LIST.finditer(answer))
    if not found:
        return None
    digits = [(int(answer[at]), at) for at in range(found[-1].start(), found[-1].end()) if answer[at] in "01"]
    return digits if len(digits) == count else None


def read_probabilities(digits: Sequence[tuple[int, int]], tokens: Sequence[Token]) -> list[float] | None:
    """P(1) / (P(1) + P(0)) at each digit, None unless every digit is a token of its own with its alternatives."""
    ends = np.cumsum([len(token.text) for token in tokens])
    found = []
    for digit, at in digits:
        place = int(np.searchsorted(ends, at, side="right"))
        if place >= len(tokens) or _digit(tokens[place].text) != str(digit) or not tokens[place].alternatives:
            return None
        weight = {"0": 0.0, "1": 0.0}
        for text, log_probability in tokens[place].alternatives.items():
            if _digit(text) in weight:
                weight[_digit(text)] += math.exp(log_probability)
        if not sum(weight.values()) > 0:
            return None
        found.append(weight["1"] / sum(weight.values()))
    return found


def _digit(text: str) -> str:
    """What is left of a token without the list's punctuation."""
    return text.strip(" ,[]\n")


REFUSAL = re.compile(
    r"^\W*(?:I['’]?m sorry|I am sorry|Sorry,|I can(?:['’]t|not|not)|I won['’]t|I am unable|I'm unable)", re.I
)


def unread(answer: str) -> str:
    """Why an answer could not be read: a reason for people."""
    if REFUSAL.match(answer):
        return "refused"
    return f"unparsed: {' '.join(answer.split())[:80]!r}"
