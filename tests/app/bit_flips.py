"""Flips one bit of a file and asks every kind of page: `python -m tests.app.bit_flips KIND FLIPS [SEED]`.

KIND is `study` (a study file), `labels` (a closed label file) or `log` (the write-ahead log that a killed server
leaves). A flip passes when each page is what it was or an error page that names the file, nothing else changes, and no
label is lost. Flips run in a process of their own, for DuckDB could end it.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from app.blind.store import LabelStore
from app.main import create_app
from app.settings import Settings
from core.errors import UserError
from tests.app.blind_client import SETUP, invitation, own_link
from tests.app.small_study import write_small_study

ROOT = Path(__file__).parents[2]
STUDY_PAGES = (
    *("/s/small", "/s/small/latents", "/s/small/latents?q=the&sort=density", "/s/small/latent/trained/0/1"),
    *("/s/small/compare", "/s/small/plots", "/s/small/protocols", "/s/small/tensors", "/s/small/progress"),
    "/s/small/blind",
)
SECONDS = 60
"""Pages that take longer hang."""

Outcome = tuple[str, list[str]]
"""`whole` or `damaged`, and what went wrong."""


@dataclass(frozen=True)
class Flip:
    """One bit of a file."""

    offset: int
    bit: int

    def of(self, content: bytes) -> bytes:
        """The content with this bit the other way round."""
        changed = bytearray(content)
        changed[self.offset] ^= 1 << self.bit
        return bytes(changed)


def flips(size: int, count: int, seed: int) -> list[Flip]:
    """`count` bits: one in eight in the first three sectors, which are headers, the others one in each equal part."""
    rng = random.Random(seed)
    headers = max(1, count // 8)
    spread = [size * at // (count - headers) for at in range(count - headers + 1)]
    offsets = [rng.randrange(min(3 * 4096, size)) for _ in range(headers)]
    offsets += [rng.randrange(low, max(high, low + 1)) for low, high in pairwise(spread)]
    return [Flip(offset, rng.randrange(8)) for offset in offsets]


class StudyFile:
    """A study, and one beside it that must not notice."""

    def __init__(self, folder: Path) -> None:
        write_small_study(folder / "other.duckdb", layers=(0,), latents=10)
        self.file = folder / "small.duckdb"
        write_small_study(self.file, layers=(0,), latents=10, tell=True)
        self.content = self.file.read_bytes()
        self._client = TestClient(
            create_app(Settings(paths=(folder,), hosts=("testserver",))), raise_server_exceptions=False
        )
        self._whole = {page: self._client.get(page).text for page in (*STUDY_PAGES, "/")}

    def try_(self, flip: Flip) -> Outcome:
        """Ask for every page of the damaged study."""
        draft = self.file.with_suffix(".draft")
        draft.write_bytes(flip.of(self.content))
        draft.replace(self.file)
        wrong, damaged = [], False
        for page in STUDY_PAGES:
            response = self._client.get(page)
            if response.status_code == 503 and "small.duckdb is damaged" in response.text:
                damaged = True
            elif response.status_code != 200 or response.text != self._whole[page]:
                wrong.append(f"{page}: {response.status_code}")
        return "damaged" if damaged else "whole", [*wrong, *self._beside()]

    def _beside(self) -> Iterator[str]:
        home = self._client.get("/")
        named = "small.duckdb is damaged" in home.text and 'href="/s/other"' in home.text
        if home.status_code != 200 or not (named or home.text == self._whole["/"]):
            yield f"/: {home.status_code}"
        for page in ("/s/other", "/readyz"):
            if self._client.get(page).status_code != 200:
                yield page


class LabelFile:
    """A file of labels with an experiment that people and a program have answered, or that and its log."""

    def __init__(self, folder: Path, log: bool) -> None:
        self._folder = folder
        write_small_study(folder / "small.duckdb", layers=(0,), latents=60, top_contexts=8)
        self.file = folder / "labels" / ("labels.sqlite-wal" if log else "labels.sqlite")
        with self._serving() as client:
            self._begin(client)
            if log:
                shutil.copytree(folder / "labels", folder / "killed")
        if log:
            shutil.rmtree(folder / "labels")
            (folder / "killed").rename(folder / "labels")
        self._files = self._read()
        self.content = self._files[self.file.name]
        with self._serving() as client:
            self._whole = {page: client.get(page, headers=headers).content for page, headers in self._pages}
        self._labels = self._stored()

    def _serving(self) -> TestClient:
        client = TestClient(
            create_app(Settings(paths=(self._folder,), hosts=("testserver",))), raise_server_exceptions=False
        )
        client.cookies.update(getattr(self, "_cookies", {}))
        return client

    def _begin(self, client: TestClient) -> None:
        own = client.post("/s/small/blind", data=SETUP | {"layers": ["0"]}).text
        join = invitation(own)
        client.post(join, data={"pseudonym": "person"})
        self._cookies = dict(client.cookies)
        given = {"invite": join.rpartition("/")[2], "pseudonym": "program"}
        bearer = {"Authorization": "Bearer " + client.post("/api/blind/sessions", json=given).json()["token"]}
        for answer in range(6):
            trial = client.get("/api/blind/trial", headers=bearer).json()
            answered = {"trial": trial["trial"], "revision": 1, "answer": 1 + answer, "seconds": 2.0}
            assert client.post("/api/blind/answers", json=answered, headers=bearer).status_code == 200
        link = own_link(own)
        pages = (link, f"{link}/labels.csv", f"{link}/method.txt", join, "/blind/rate")
        self._pages: list[tuple[str, dict[str, str]]] = [*((page, {}) for page in pages), ("/api/blind/trial", bearer)]
        self._bearer = bearer

    def try_(self, flip: Flip) -> Outcome:
        """Ask for every page that needs the labels, then go on with an answer; then look what the file holds."""
        shutil.rmtree(self.file.parent)
        self.file.parent.mkdir()
        begun = self._files | {self.file.name: flip.of(self.content)}
        for name, content in begun.items():
            (self.file.parent / name).write_bytes(content)
        wrong: list[str] = []
        with self._serving() as client:
            refused = sum(self._asked(client, page, headers, wrong) for page, headers in self._pages)
            if not refused and not wrong:
                wrong += self._goes_on(client)
            if client.get("/").status_code != 200 or TestClient(client.app).get("/s/small/latents").status_code != 200:
                wrong.append("the studies")
        if refused:
            now = self._read()
            wrong += [f"{name} was changed" for name in begun if now.get(name) != begun[name]]
        elif not self._labels <= self._stored():
            wrong.append("labels are lost")
        return "damaged" if refused else "whole", wrong

    def _asked(self, client: TestClient, page: str, headers: dict[str, str], wrong: list[str]) -> bool:
        response = client.get(page, headers=headers)
        refused = response.status_code == 503 and "labels.sqlite" in response.text
        if not refused and (response.status_code != 200 or response.content != self._whole[page]):
            wrong.append(f"{page}: {response.status_code}")
        return refused

    def _goes_on(self, client: TestClient) -> Iterator[str]:
        """Answer as the program: acknowledged and kept, or refused in a sentence."""
        trial = client.get("/api/blind/trial", headers=self._bearer).json()
        given = {"trial": trial["trial"], "revision": trial["revision"], "answer": 3}
        response = client.post("/api/blind/answers", json=given, headers=self._bearer)
        if response.status_code not in (200, 503):
            yield f"an answer: {response.status_code}"

    def _read(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.file.parent.iterdir()}

    def _stored(self) -> set[tuple[Any, ...]]:
        """Every label that the file has."""
        try:
            with (
                closing(LabelStore(self.file.with_name("labels.sqlite"))) as store,
                store._file.reading() as connection,
            ):
                return set(connection.execute("SELECT trial, revision, event, answer FROM labels").fetchall())
        except UserError:
            return set()


KINDS: dict[str, Callable[[Path], StudyFile | LabelFile]] = {
    "study": StudyFile,
    "labels": lambda folder: LabelFile(folder, log=False),
    "log": lambda folder: LabelFile(folder, log=True),
}


def flip_here(kind: str, count: int, seed: int, first: int) -> None:
    """Print the outcome of each flip from the one numbered `first`, as a line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        subject = KINDS[kind](Path(folder))
        for number, flip in list(enumerate(flips(len(subject.content), count, seed)))[first:]:
            signal.alarm(SECONDS)  # nothing handles it: it ends the process, whatever that waits for
            outcome, wrong = subject.try_(flip)
            sys.stdout.write(json.dumps([number, outcome, [f"bit {flip.bit} of {flip.offset}: {w}" for w in wrong]]))
            sys.stdout.write("\n")
            sys.stdout.flush()


def flip_all(kind: str, count: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Counts of outcomes, and what went wrong; a process that dies is one more thing that did."""
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    done = 0
    while done < count:
        command = [sys.executable, "-m", "tests.app.bit_flips", kind, str(count), str(seed), str(done)]
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        for number, outcome, wrong in map(json.loads, ended.stdout.splitlines()):
            done = number + 1
            outcomes[outcome] += 1
            findings += wrong
        if ended.returncode > 0:
            raise RuntimeError("The trial itself failed.")
        if ended.returncode < 0:
            findings.append(f"flip {done}: the process was ended by signal {-ended.returncode}")
            done += 1
    return outcomes, findings


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    if len(numbers) == 3:
        flip_here(kind, *map(int, numbers))
    else:
        counts, found = flip_all(kind, *map(int, numbers))
        sys.stdout.write("\n".join([*found, str(dict(counts))]) + "\n")
