"""The write-ahead log that a killed server leaves beside the file of labels: was all of it read?

DuckDB takes an entry that reaches past the end of the log for one whose writing was cut off: it drops that entry and
all that follow, says nothing, and later writes over them. After one flipped bit in the length of an entry, that would
be every answer since. An entry is its length, its checksum (8 bytes each) and as many bytes as the length says.
"""

import struct

import numpy as np

_HEAD = 16
"""Bytes of an entry before its content."""
_FIRST = 128
"""By this byte, after a short header, the first entry has begun."""


def passed_over(log: bytes, begun: bool) -> bool:
    """Whether whole entries were not read: the log ends with one, but its lengths do not lead there.

    `begun` is false where DuckDB has read nothing of the log, which then has a damaged header or first entry.
    """
    return _ends_with_an_entry(log) and not (begun and any(_leads_to_the_end(log, at) for at in range(_FIRST)))


def _ends_with_an_entry(log: bytes) -> bool:
    for shift in range(8):
        lengths = np.frombuffer(log, "<u8", max(0, len(log) - shift) // 8, shift)
        left = len(log) - _HEAD - shift - 8 * np.arange(len(lengths))
        if np.any((lengths == left) & (left > 0)):
            return True
    return False


def _leads_to_the_end(log: bytes, at: int) -> bool:
    while at + _HEAD < len(log):
        at += _HEAD + int(struct.unpack_from("<Q", log, at)[0])
    return at == len(log)
