"""Pseudonyms: made of two words and a number, or checked."""

import secrets
import unicodedata

from app.errors import bad_request

LONGEST = 40
"""Characters of a pseudonym, at most."""

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
    """The pseudonym without spaces at its ends; raises a 400 when it is empty, too long or has invisible characters."""
    trimmed = text.strip()
    hidden = any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for char in trimmed)
    if not trimmed or len(trimmed) > LONGEST or hidden:
        raise bad_request("pseudonym", trimmed[:LONGEST], f"1 to {LONGEST} visible characters, or left out")
    return trimmed
