"""Contexts as a page shows them: tokens with a shade of the activation and invisible characters drawn."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.study.files import Row

LEVELS = 10
"""Shades above 'not active'; static/app.css has one class for each."""

_PICTURES = {"\n": "↵", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True)
class Token:
    """A token of a context. `level` is 0 where the latent is silent, else 1 to LEVELS."""

    text: str
    level: int
    activation: float | None
    peak: bool


@dataclass(frozen=True)
class Context:
    """A window of text; `times` counts the identical ones that were folded into it."""

    kind: str
    stratum: int
    tokens: tuple[Token, ...]
    peak: float | None
    peak_text: str
    article: str
    sequence: int
    start: int
    times: int = 1

    @property
    def near_peak(self) -> tuple[Token, ...]:
        """The tokens around the peak, for a line in a list."""
        at = next((i for i, token in enumerate(self.tokens) if token.peak), 0)
        start = max(0, min(at - 9, len(self.tokens) - 14))
        return self.tokens[start : start + 14]


def visible(text: str) -> str:
    """A token as it is drawn: line ends and tabs as glyphs, other control characters as a box."""
    return boxed("".join(_PICTURES.get(char, char) for char in text))


def boxed(text: str) -> str:
    """A text of several lines as it is drawn: control characters, but for the ends of lines and tabs, as a box."""
    if text.isprintable():
        return text
    return "".join("▯" if unicodedata.category(c) in _HIDDEN and c not in _PICTURES else c for c in text)


_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Control and format characters: invisible, and some turn the direction of the text after them."""


def chip(text: str | None) -> str:
    """A token on its own: spaces at its ends made visible too."""
    if text is None:
        return ""
    drawn = visible(text)
    core = drawn.strip(" ")
    if not core:
        return "␣" * len(drawn) or "∅"
    lead = len(drawn) - len(drawn.lstrip(" "))
    return "␣" * lead + core + "␣" * (len(drawn) - lead - len(core))


def shade(activation: float, largest: float) -> int:
    """The shade of an activation on a scale that ends at `largest`: 1 to LEVELS."""
    if largest <= 0:
        return 1
    return max(1, min(LEVELS, round(activation / largest * LEVELS)))


def build_context(row: Row, texts: Mapping[int, str], largest: float) -> Context:
    """One row of `queries.contexts` for people; `largest` is the end of the colour scale."""
    active = dict(zip(row["positions"], row["activations"], strict=False))
    top = max(active, key=lambda position: active[position], default=None)
    tokens = tuple(
        Token(
            visible(texts.get(token, f"⟨{token}⟩")),
            shade(active[at], largest) if at in active else 0,
            active.get(at),
            at == top,
        )
        for at, token in enumerate(row["tokens"])
    )
    in_window = top is not None and top < len(tokens)
    return Context(
        kind=row["kind"],
        stratum=row["stratum"],
        tokens=tokens,
        peak=None if top is None else active[top],
        peak_text=chip(texts.get(row["tokens"][top])) if in_window and top is not None else "",
        article=row["article"] or "",
        sequence=row["sequence"],
        start=row["start"],
    )


def fold(contexts: Iterable[Context]) -> list[Context]:
    """Show windows of the same kind, stratum and text once, where the first stands, with how often they occur."""
    seen: dict[tuple[object, ...], Context] = {}
    for context in contexts:
        key = (context.kind, context.stratum, *(token.text for token in context.tokens))
        first = seen.get(key)
        seen[key] = context if first is None else replace(first, times=first.times + 1)
    return list(seen.values())


def build_contexts(rows: Sequence[Row], texts: Mapping[int, str], largest: float) -> list[Context]:
    """All of them, duplicates folded."""
    return fold(build_context(row, texts, largest) for row in rows)


def token_ids(rows: Iterable[Row]) -> set[int]:
    """Every token that some contexts need."""
    return {token for row in rows for token in row["tokens"]}
