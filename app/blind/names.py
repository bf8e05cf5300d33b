"""Pseudonyms: made of two words and a number, or checked, so that no two of an experiment look alike."""

import secrets
import unicodedata

from app.errors import PageError

LONGEST = 40
"""Characters of a pseudonym, at most."""

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Control, format, surrogate, private and unassigned characters; ends of lines."""
_BLANK = (
    *(range(code, code + 1) for code in (0x34F, 0x115F, 0x1160, 0x180F, 0x2800, 0x3164, 0xFFA0, 0x16FE4, 0x1D159)),
    *(range(0x17B4, 0x17B6), range(0x180B, 0x180E), range(0xFE00, 0xFE10), range(0x13441, 0x13443)),
    range(0xE0100, 0xE01F0),
)
"""Letters, marks and symbols that draw nothing: fillers, joiners, variation selectors, the empty braille pattern."""

_FIRST = (
    *("amber", "brisk", "calm", "clear", "dusky", "eager", "early", "gentle", "golden", "green", "hazel", "keen"),
    *("lively", "lunar", "mellow", "misty", "noble", "olive", "plain", "quiet", "rapid", "rustic", "silver", "sunny"),
)
_SECOND = (
    *("badger", "beech", "brook", "cedar", "comet", "crane", "falcon", "fern", "finch", "harbour", "heron", "lark"),
    *("linden", "maple", "marten", "meadow", "otter", "pebble", "pine", "plover", "river", "sparrow", "tern", "willow"),
)


def make_pseudonym() -> str:
    """Such as 'quiet-heron-417'; 518,400 of them, so the caller looks whether it is free."""
    return f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}-{100 + secrets.randbelow(900)}"


def check_pseudonym(text: str) -> str:
    """The pseudonym in its plain form: compatible characters made one (NFKC), blanks one space, none at the ends.

    Raises a 400 when it is empty, too long or has a character that cannot be seen.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    for char in plain:
        if _unseen(char):
            named = f"U+{ord(char):04X} {unicodedata.name(char, '')}".strip()
            raise _refused(f"It has a character that cannot be seen, {named}.")
    plain = " ".join(plain.split())
    if not 0 < len(plain) <= LONGEST:
        raise _refused(f"It has {len(plain)} characters.")
    return plain


def folded(pseudonym: str) -> str:
    """What two pseudonyms that look alike have in common: neither case, nor kinds of dash and blank, nor the unseen."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", pseudonym).casefold())
    seen = ("-" if unicodedata.category(char) == "Pd" else char for char in plain if not _unseen(char))
    return " ".join("".join(seen).split())


def _unseen(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN or any(ord(char) in codes for codes in _BLANK)


def _refused(why: str) -> PageError:
    advice = f"Choose one of 1 to {LONGEST} characters that can all be seen, or none to get one."
    return PageError(400, "That pseudonym cannot be", why, advice)
