"""A file of which one bit is wrong is named, its pages are no crash, and nothing in it is written over."""

import re
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import pytest
from small_experiment import answer, begin

from app.blind.store import LabelStore
from core.errors import UserError
from tests.app.bit_flips import flip_all
from tests.app.blind_client import blind_study, invitation, serving, set_up


@pytest.mark.parametrize(("kind", "count"), [("study", 10), ("labels", 8), ("log", 8)])
def test_a_flipped_bit_is_found_or_changes_nothing(kind: str, count: int) -> None:
    """A sample; `python -m tests.app.bit_flips KIND FLIPS` tries as many as it is told."""
    outcomes, findings = flip_all(kind, count)
    assert findings == []
    assert outcomes.total() == count
    assert outcomes["damaged"] > 0


def test_a_rater_whose_session_cannot_be_read_sees_no_latents_and_everybody_else_does(tmp_path: Path) -> None:
    with serving(blind_study(tmp_path)) as client:
        client.post(invitation(set_up(client).text))
        cookies = client.cookies
    (tmp_path / "labels" / "labels.sqlite").write_bytes(b"no database" * 1000)
    with serving(tmp_path) as client:
        assert client.get("/s/small/latents").status_code == 200
        client.cookies = cookies
        assert client.get("/s/small").status_code == 200
        refused = client.get("/s/small/latents")
    assert refused.status_code == 503
    assert "labels.sqlite" in refused.text
    assert str(tmp_path) not in refused.text


ANSWERS = 5


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A file of labels with five answers and, as after a kill, the log that holds them."""
    store = LabelStore(tmp_path / "begun.sqlite")
    session = begin(store)
    for _ in range(ANSWERS):
        answer(store, session)
    for name in ("sqlite", "sqlite-wal"):
        shutil.copy(tmp_path / f"begun.{name}", tmp_path / f"labels.{name}")
    store.close()
    return tmp_path / "labels.sqlite"


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def answers(path: Path) -> int:
    """Rows of the log of answers."""
    with closing(LabelStore(path)) as store, store._file.reading() as connection:
        return int(connection.execute("SELECT count(*) FROM labels").fetchone()[0])


def refused(path: Path, match: str) -> None:
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(UserError, match=match):
        LabelStore(path)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize("at", [0, 10, 24, 32 + 16, 32 + 100, -4096, -4100, -4120 + 8, -1])
def test_answers_behind_a_damaged_frame_of_the_log_are_not_forgotten(killed: Path, at: int) -> None:
    """SQLite alone would take the log to end there, and write over the rest of it."""
    log = log_of(killed)
    content = bytearray(log.read_bytes())
    content[at] ^= 1
    log.write_bytes(content)
    refused(killed, "its log is damaged")


@pytest.mark.parametrize("lost", [1, 20, 4100])
def test_a_log_whose_last_frame_was_cut_off_is_read_up_to_there(killed: Path, lost: int) -> None:
    log = log_of(killed)
    log.write_bytes(log.read_bytes()[:-lost])
    assert answers(killed) == ANSWERS - 1


@pytest.mark.parametrize("zeros", [100, 4120, 10_000])
def test_a_log_that_ends_in_zeros_as_after_a_power_cut_is_read(killed: Path, zeros: int) -> None:
    log = log_of(killed)
    log.write_bytes(log.read_bytes() + bytes(zeros))
    assert answers(killed) == ANSWERS


def test_answers_after_one_that_failed_are_read_from_the_log(tmp_path: Path) -> None:
    """The failed one has left frames in the log, longer than those of the next."""
    store, kept = LabelStore(tmp_path / "begun.sqlite"), tmp_path / "labels.sqlite"
    session = begin(store)
    with suppress(RuntimeError), store._file.transaction() as connection:
        connection.execute("PRAGMA cache_size = 1")  # pages that do not fit go into the log before the end
        connection.execute("UPDATE items SET evidence = evidence || 'x'")
        assert log_of(tmp_path / "begun.sqlite").stat().st_size > 100_000
        raise RuntimeError
    answer(store, session)
    shutil.copy(tmp_path / "begun.sqlite", kept)
    shutil.copy(tmp_path / "begun.sqlite-wal", log_of(kept))
    store.close()
    assert answers(kept) == 1


def test_a_bit_that_flipped_in_any_part_of_the_file_is_found_or_in_no_value(killed: Path) -> None:
    assert answers(killed) == ANSWERS  # and the log is in the file
    whole, rng, found = killed.read_bytes(), Random(0), 0
    with closing(sqlite3.connect(killed)) as connection:
        before = list(connection.iterdump())
    in_schema = [(match.start(), 7) for match in re.finditer(b"NOT NULL", whole)][:3]
    for at, bit in [*in_schema, *((rng.randrange(len(whole)), rng.randrange(8)) for _ in range(100))]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        killed.write_bytes(flipped)
        try:
            LabelStore(killed).close()
        except UserError:
            found += 1
            continue
        with closing(sqlite3.connect(killed)) as connection:
            assert list(connection.iterdump()) == before, (at, bit)
    assert found > 30
