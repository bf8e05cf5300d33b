"""A file of which one bit is wrong is named, its pages are no crash, and nothing in it is written over."""

from pathlib import Path

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
    (tmp_path / "labels" / "labels.duckdb").write_bytes(b"no database" * 1000)
    with serving(tmp_path) as client:
        assert client.get("/s/small/latents").status_code == 200
        client.cookies = cookies
        assert client.get("/s/small").status_code == 200
        refused = client.get("/s/small/latents")
    assert refused.status_code == 503
    assert "labels.duckdb" in refused.text
    assert str(tmp_path) not in refused.text


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A file of labels with five answers and, as after a kill, the log that holds them."""
    store = LabelStore(tmp_path / "begun.duckdb")
    session = begin(store)
    for _ in range(5):
        answer(store, session)
    for name in ("duckdb", "duckdb.wal"):
        (tmp_path / f"labels.{name}").write_bytes((tmp_path / f"begun.{name}").read_bytes())
    store.close()
    return tmp_path / "labels.duckdb"


def entries(log: bytes) -> list[int]:
    """Where the entries of a log begin."""
    at, found = log.index(b"\xff\xff") + 2, []
    while at < len(log):
        found.append(at)
        at += 16 + int.from_bytes(log[at : at + 8], "little")
    assert at == len(log)
    return found


@pytest.mark.parametrize("where", ["header", "first", "middle"])
def test_answers_behind_a_damaged_length_are_not_forgotten(killed: Path, where: str) -> None:
    """DuckDB alone would take the log for one that was cut off there, and write over the rest of it."""
    log = killed.with_name("labels.duckdb.wal")
    content = bytearray(log.read_bytes())
    places = entries(content)
    content[{"header": 0, "first": places[0] + 5, "middle": places[len(places) // 2] + 5}[where]] ^= 1
    log.write_bytes(content)
    before = {path: path.read_bytes() for path in (killed, log)}
    with pytest.raises(UserError, match=r"its log, labels\.duckdb\.wal, cannot be read to its end"):
        LabelStore(killed)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("lost", [1, 20, 60])
def test_a_log_whose_last_entry_was_cut_off_is_read_up_to_there(killed: Path, lost: int) -> None:
    log = killed.with_name("labels.duckdb.wal")
    log.write_bytes(log.read_bytes()[:-lost])
    store = LabelStore(killed)
    with store._file.reading() as connection:
        assert connection.execute("SELECT count(*) FROM labels").fetchall() == [(4,)]
    store.close()


def test_a_log_that_ends_in_zeros_as_after_a_power_cut_is_read(killed: Path) -> None:
    log = killed.with_name("labels.duckdb.wal")
    log.write_bytes(log.read_bytes() + bytes(4096))
    store = LabelStore(killed)
    with store._file.reading() as connection:
        assert connection.execute("SELECT count(*) FROM labels").fetchall() == [(5,)]
    store.close()
