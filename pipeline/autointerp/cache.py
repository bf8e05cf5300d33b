"""Keeps every raw answer of a language model, so that each is paid for once."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.files import writing


def canonical_hash(endpoint: str, body: Mapping[str, Any]) -> str:
    """SHA-256 of address, model, messages and parameters; the address counts, for a name alone names no model."""
    text = json.dumps({"endpoint": endpoint, **body}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


SEAL = b', "sha256": "'
"""What stands between a line and the hash of what comes before."""


class AnswerCache:
    """A file of one line for each answer, only ever appended to; a line is as it was written or it does not count.

    Raises UserError where the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "answers.jsonl"
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        self.damaged = 0
        """Lines that do not count."""
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._index()

    def _index(self) -> None:
        end, torn = 0, False
        with self._path.open("rb") as lines:
            for line in lines:
                if _sealed(line[: line.rfind(SEAL)]) == line:
                    self._places[json.loads(line)["key"]] = (end, len(line))
                else:
                    self.damaged += 1
                end += len(line)
                torn = not line.endswith(b"\n")
        if end and torn:  # a killed run's last line: it must not swallow the next one
            self._write(b"\n")

    def get(self, key: str) -> str | None:
        """The raw answer to the request with this hash."""
        place = self._places.get(key)
        return None if place is None else str(self._read(*place)["answer"])

    def put(self, key: str, request: Mapping[str, Any], answer: str) -> None:
        """Keep an answer."""
        line = json.dumps({"key": key, "request": request, "answer": answer}, ensure_ascii=False)
        data = _sealed(line.removesuffix("}").encode(errors="replace"))
        with self._lock, writing(self._path):
            end = os.fstat(self._file).st_size
            try:
                self._write(data)
            except OSError:
                os.ftruncate(self._file, end)  # a torn line would swallow the next one
                raise
            self._places[key] = (end, len(data))

    def all(self) -> Iterator[tuple[Mapping[str, Any], str]]:
        """Requests and answers."""
        for place in list(self._places.values()):
            record = self._read(*place)
            yield record["request"], record["answer"]

    def _write(self, data: bytes) -> None:
        if os.write(self._file, data) != len(data):
            raise OSError(errno.ENOSPC, "")

    def _read(self, start: int, length: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(os.pread(self._file, length, start))
        return record

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _sealed(record: bytes) -> bytes:
    """The whole line of a record, which lacks its closing bracket."""
    return record + SEAL + hashlib.sha256(record).hexdigest().encode() + b'"}\n'
