"""The label store: experiments, who may open them, and sessions with what they show."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from small_experiment import STUDY, begin, design, evidence, prepared, sessions, status_of, trials_of
from small_study import write_small_study

from app.blind import evidence as built
from app.blind.design import Design
from app.blind.store import LabelStore
from app.errors import PageError
from app.study.study import Studies
from core.errors import UserError

ROOT = Path(__file__).parents[2]


def test_an_experiment_is_found_by_its_tokens_and_not_without(store: LabelStore) -> None:
    own = design(title="<b>Title</b>")
    made, token = store.create_experiment(own, STUDY, prepared(own))
    assert store.experiment(made.experiment) == made
    assert store.experiment_by_organiser(token) == made
    assert store.experiment_by_invite(made.invite) == made
    assert (made.design, made.study, made.title) == (own, STUDY, "<b>Title</b>")
    assert (made.frozen_at, made.closed_at) == (None, None)
    assert len({made.experiment, made.invite, token}) == 3
    for find in (store.experiment, store.experiment_by_organiser, store.experiment_by_invite):
        assert status_of(lambda find=find: find("nonsense")) == 404
    assert status_of(lambda: store.experiment_by_organiser(made.invite)) == 404


def test_tokens_that_give_rights_are_not_in_the_file(store: LabelStore, path: Path) -> None:
    made, token = store.create_experiment(design(), STUDY, prepared(design()))
    bearer = store.join(made.experiment, kind="program").token
    assert bearer is not None
    store.close()
    assert token.encode() not in path.read_bytes()
    assert bearer.encode() not in path.read_bytes()
    assert made.invite.encode() in path.read_bytes()


def test_the_cookie_secret_is_made_once(path: Path) -> None:
    first = LabelStore(path)
    secret = first.cookie_secret
    first.close()
    again = LabelStore(path)
    assert again.cookie_secret == secret
    assert len(secret) == 32
    again.close()
    assert path.stat().st_mode & 0o077 == 0
    assert [file.name for file in path.parent.iterdir()] == ["labels.sqlite"]


def test_a_file_that_another_process_has_is_refused_in_a_sentence(store: LabelStore, path: Path) -> None:
    assert store.cookie_secret
    code = f"""
from pathlib import Path
from app.blind.store import LabelStore
from core.errors import UserError
try:
    LabelStore(Path({str(path)!r}))
except UserError as error:
    raise SystemExit(str(error))
"""
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert "in use by another program" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_a_file_that_holds_no_labels_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match="Cannot keep labels"):
        LabelStore(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_study_file_and_another_version_are_refused(path: Path, store: LabelStore) -> None:
    study = path.with_name("study.duckdb")
    write_small_study(study, layers=[0])
    with pytest.raises(UserError, match="Cannot keep labels"):
        LabelStore(study)
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
    with pytest.raises(UserError, match="version 99"):
        LabelStore(path)


def test_evidence_is_frozen_when_the_study_is_built_anew(tmp_path: Path, store: LabelStore) -> None:
    own = Design(title="T", study="small", layers=(0, 3), variants=("control",), form="pair", trials=10, contexts=6)
    write_small_study(tmp_path / "small.duckdb", top_contexts=12)
    studies = Studies((tmp_path / "small.duckdb",), 10.0)
    with studies.open("small") as study:
        wanted = built.prepare(study, own)
        session = store.join(store.create_experiment(own, built.identity(study), wanted)[0].experiment)
    trials = trials_of(store, session)
    before = [store.shown(session.session, trial) for trial in trials]
    write_small_study(tmp_path / "small.duckdb", top_contexts=12, seed=5)
    assert [store.shown(session.session, trial) for trial in trials] == before
    known = {one.model_dump_json() for pair in wanted for one in (pair.trained, pair.random, pair.gold) if one}
    assert all(shown.left.model_dump_json() in known for shown in before)
    studies.database.close()


@pytest.mark.parametrize("form", ["single", "pair"])
def test_a_session_shows_what_was_drawn(store: LabelStore, form: str) -> None:
    own = design(form=form)
    wanted = prepared(own)
    session = store.join(store.create_experiment(own, STUDY, wanted)[0].experiment)
    items = {item.item: item for item in store.items(session.experiment)}
    gold = {pair.pair.random.key: pair.gold for pair in wanted}
    latents = {member.key: member for pair in wanted for member in (pair.pair.trained, pair.pair.random)}
    standing = store.standing(session.experiment)
    assert len(standing) == own.counts.total
    for row, trial in zip(standing, trials_of(store, session), strict=True):
        shown = store.shown(session.session, trial)
        assert (shown.practice, shown.right is None) == (row.kind == "practice", form == "single")
        for number, seen in ((row.left, shown.left), (row.right, shown.right)):
            if number is not None:
                key = (items[number].sae, items[number].latent)
                is_gold = row.kind == "gold" and items[number].variant != "trained"
                assert seen == (gold[key] if is_gold else evidence(latents[key]))


def test_seeds_and_tokens_are_each_raters_own(store: LabelStore) -> None:
    made, _ = store.create_experiment(design(), STUDY, prepared(design()))
    joined = [store.join(made.experiment) for _ in range(10)]
    assert len({session.seed for session in joined}) == 10
    assert len({session.pseudonym for session in joined}) == 10
    tokens = [trial for session in joined for trial in trials_of(store, session)]
    assert len(set(tokens)) == len(tokens) == 10 * design().counts.total
    assert all(len(token) >= 22 for token in tokens)
    orders = {tuple(row.left for row in store.standing(made.experiment) if row.session == s.session) for s in joined}
    assert len(orders) == 10


def test_a_pseudonym_is_checked_and_unique_in_its_experiment(store: LabelStore) -> None:
    first, second = (store.create_experiment(design(), STUDY, prepared(design()))[0].experiment for _ in range(2))
    assert store.join(first, "  Ada <b>  ").pseudonym == "Ada <b>"
    assert status_of(lambda: store.join(first, "aDA <B>")) == 409
    assert store.join(second, "Ada <b>").pseudonym == "Ada <b>"
    for bad in ("", "   ", "x" * 41, "a\u202eb", "a\nb", "a\u2028b", "a\x00b"):
        assert status_of(lambda bad=bad: store.join(first, bad)) == 400
    assert len(sessions(store, first)) == 1
    assert status_of(lambda: store.join("nonsense")) == 404


@pytest.mark.parametrize(
    "alike",
    [
        "MÜLLER, Ada-1",
        "Mu\u0308ller, Ada-1",
        "Ｍüller, Ada-1",
        "Müller,\u00a0 Ada-1",
        "Müller,\u1680Ada-1",
        "Müller, Ada\u20101",
    ],
)
def test_pseudonyms_that_look_alike_are_one(store: LabelStore, alike: str) -> None:
    experiment = begin(store).experiment
    assert store.join(experiment, "Müller, Ada-1").pseudonym == "Müller, Ada-1"
    with pytest.raises(PageError, match="looks like it") as refused:
        store.join(experiment, alike)
    assert refused.value.status == 409


def test_a_pseudonym_is_kept_in_its_plain_form(store: LabelStore) -> None:
    experiment = begin(store).experiment
    assert store.join(experiment, "\u3000ﬁne \u2003 Straße ").pseudonym == "fine Straße"
    assert status_of(lambda: store.join(experiment, "FINE STRASSE")) == 409
    assert store.join(experiment, "東京 ❤").pseudonym == "東京 ❤"


@pytest.mark.parametrize(
    "code", [0x200B, 0x2060, 0xFEFF, 0xAD, 0x34F, 0x115F, 0x3164, 0xFFA0, 0x2800, 0xFE0F, 0xE0100, 0x17B4]
)
def test_a_pseudonym_has_no_character_that_cannot_be_seen(store: LabelStore, code: int) -> None:
    experiment = begin(store).experiment
    for name in (chr(code), f"ada{chr(code)}", f"{chr(code)}ada"):
        with pytest.raises(PageError, match=r"cannot be seen, U[+][0-9A-F]{4,5} ") as refused:
            store.join(experiment, name)
        assert refused.value.status == 400


def test_a_program_has_a_token_and_a_person_has_none(store: LabelStore) -> None:
    made, _ = store.create_experiment(design(), STUDY, prepared(design()))
    program, person = store.join(made.experiment, kind="program"), store.join(made.experiment)
    assert person.token is None
    assert program.token is not None
    assert store.session_by_bearer(program.token) == replace(program, token=None)
    assert store.session(person.session) == person
    for token in ("", "None", program.session, person.session):
        assert status_of(lambda token=token: store.session_by_bearer(token)) == 404
    assert status_of(lambda: store.session("nonsense")) == 404


def test_a_browser_is_rating_while_a_session_is_open(store: LabelStore) -> None:
    session, other = begin(store), begin(store)
    assert store.is_rating(session.client)
    store.leave(session.session)
    assert not store.is_rating(session.client)
    assert store.is_rating(other.client)
    store.close_experiment(other.experiment)
    assert not store.is_rating(other.client)
