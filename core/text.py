"""Numbers, shares, sizes and lists as people write them."""

import math
from collections.abc import Sequence

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


def number(value: float | None) -> str:
    """A number as people write it: a count in full, anything else to about three significant digits."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not finite"
    return _written(value).replace("-", MINUS)


def _written(value: float) -> str:
    size = abs(value)
    if isinstance(value, int) or (value == int(value) and 1000 <= size < 1e15):
        return f"{int(value):,}"
    if 0 < size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}{TIMES}10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return f"{value:,.{3 if size < 10 else 1 if size < 1000 else 0}f}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    if value is None:
        return DASH
    return f"{value:.0%}" if value in (0, 1) or 0.1 <= value < 0.995 else f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """A time in the unit that people would use."""
    if seconds is None:
        return "unknown"
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.{0 if seconds >= 100 * size else 1}f} {name}"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def large(number: float) -> str:
    """Three digits and the letter of a power of a thousand: 135 M, 41.2 T."""
    letters = ["", "k", "M", "G", "T", "P", "E"]
    while number >= 999.5 and len(letters) > 1:
        number /= 1000
        letters.pop(0)
    return f"{number:.3g} {letters[0]}"


def byte_size(size: float) -> str:
    """A size of memory or of a file."""
    return f"{large(size)}B"


def count(n: int, one: str, many: str | None = None) -> str:
    """How many there are, and of what: "1 label", "2,000 labels"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(texts: Sequence[str]) -> str:
    """Texts as a sentence lists them: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
