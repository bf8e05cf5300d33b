"""Answers: what may be written when, that nothing is written twice or deleted, and what comes out for analysis."""

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_experiment import (
    STUDY,
    answer,
    begin,
    design,
    finish,
    past_practice,
    prepared,
    rows,
    sessions,
    status_of,
    trials_of,
)

from app.blind.sessions import Ack, StaleError, Undoable
from app.blind.store import LabelStore
from app.errors import PageError


def test_a_session_from_the_first_answer_to_the_last(store: LabelStore, path: Path) -> None:
    own = design(form="pair")
    session = begin(store, own)
    now = store.current(session.session)
    assert (now.done, now.total, now.practice_total, now.practice) == (0, 30, 4, True)
    for done in range(own.counts.total):
        now = store.current(session.session)
        assert (now.done, now.revision, now.finished) == (done, 1, False)
        assert store.session(session.session).finished_at is None
        ack = answer(store, session, 1 + done % 6)
        assert ack.written
        assert (ack.truth is not None) == (done < 4)
    now = store.current(session.session)
    assert (now.trial, now.done, now.finished, now.undoable) == (None, 30, True, None)
    ended = store.session(session.session)
    assert ended.finished_at is not None
    assert not ended.left_early
    assert [row.answer for row in store.standing(session.experiment)] == [1 + done % 6 for done in range(30)]
    assert [(p.done, p.total) for p in sessions(store, session.experiment)] == [(30, 30)]
    store.close()
    again = LabelStore(path)
    assert again.current(session.session) == now
    assert len(again.standing(session.experiment)) == 30
    again.close()


def test_the_same_answer_again_changes_nothing(store: LabelStore) -> None:
    session = begin(store)
    now = store.current(session.session)
    assert now.trial is not None
    first = store.label(session.session, now.trial, now.revision, 2, 1.0)
    for value in (2, 5):
        again = store.label(session.session, now.trial, now.revision, value, 9.0)
        assert again == replace(first, written=False)
    assert store.skip(session.session, now.trial, now.revision, "late").event == "label"
    assert rows(store, session) == 1
    assert store.standing(session.experiment)[0].answer == 2
    finish(store, session)
    assert store.label(session.session, now.trial, now.revision, 2, 1.0) == replace(first, written=False)
    store.close_experiment(session.experiment)
    assert store.label(session.session, now.trial, now.revision, 2, 1.0) == replace(first, written=False)
    assert rows(store, session) == 30


def test_a_second_tab_that_is_behind_or_ahead_writes_nothing(store: LabelStore) -> None:
    session = begin(store)
    trials = trials_of(store, session)
    answer(store, session)
    for trial, revision in ((trials[0], 2), (trials[2], 1), (trials[1], 2), (trials[1], 0), (trials[1], -1)):
        with pytest.raises(StaleError):
            store.label(session.session, trial, revision, 3, 1.0)
    assert rows(store, session) == 1
    assert store.current(session.session).trial == trials[1]


def test_a_trial_of_another_session_is_refused(store: LabelStore) -> None:
    made, _ = store.create_experiment(design(), STUDY, prepared(design()))
    mine, other = store.join(made.experiment), store.join(made.experiment)
    foreign = trials_of(store, other)[0]
    assert status_of(lambda: store.label(mine.session, foreign, 1, 3, 1.0)) == 404
    assert status_of(lambda: store.shown(mine.session, foreign)) == 404
    assert status_of(lambda: store.undo(mine.session, Undoable(foreign, 2))) == 404
    assert status_of(lambda: store.label("nonsense", foreign, 1, 3, 1.0)) == 404
    assert rows(store, mine) == 0


@pytest.mark.parametrize("value", [0, 7, -1, True, 3.0, "3", None])
def test_an_answer_that_cannot_be_is_refused(store: LabelStore, value: int) -> None:
    session = begin(store)
    assert status_of(lambda: answer(store, session, value)) == 400
    assert rows(store, session) == 0


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(store: LabelStore, seconds: float) -> None:
    session = begin(store)
    trial = trials_of(store, session)[0]
    assert status_of(lambda: store.label(session.session, trial, 1, 3, seconds)) == 400
    assert status_of(lambda: store.label(session.session, trial, 1, 3, 1.0, seconds)) == 400
    assert store.label(session.session, trial, 1, 3).written


def test_a_skip_stands_with_its_reason(store: LabelStore) -> None:
    session = begin(store)
    past_practice(store, session)
    now = store.current(session.session)
    assert now.trial is not None
    hostile = "<script>'; DROP TABLE labels; --\u202e"
    assert status_of(lambda: store.skip(session.session, str(now.trial), 1, "x" * 501)) == 400
    assert store.skip(session.session, now.trial, now.revision, hostile).event == "skip"
    row = store.standing(session.experiment)[4]
    assert (row.event, row.answer, row.reason) == ("skip", None, hostile)
    assert store.current(session.session).done == 5


def test_an_undo_opens_the_trial_again_and_deletes_nothing(store: LabelStore) -> None:
    session = begin(store)
    past_practice(store, session)
    now = store.current(session.session)
    answer(store, session, 1)
    undoable = store.current(session.session).undoable
    assert undoable == Undoable(str(now.trial), 2)
    ack = store.undo(session.session, undoable)
    assert (ack.event, ack.revision, ack.written) == ("undo", 2, True)
    assert store.undo(session.session, undoable) == replace(ack, written=False)
    after = store.current(session.session)
    assert (after.trial, after.revision, after.done) == (now.trial, 3, 4)
    assert store.standing(session.experiment)[4].event is None
    assert answer(store, session, 6).revision == 3
    row = store.standing(session.experiment)[4]
    assert (row.event, row.answer, row.revisions) == ("label", 6, 3)
    log = [row for row in store.all_events(session.experiment) if row.position == 4]
    assert [(row.revision, row.event, row.answer) for row in log] == [
        (1, "label", 1),
        (2, "undo", None),
        (3, "label", 6),
    ]


def test_undoing_twice_goes_two_back_and_stops_at_practice(store: LabelStore) -> None:
    session = begin(store)
    past_practice(store, session)
    assert store.current(session.session).undoable is None
    assert status_of(lambda: store.undo(session.session)) == 409
    answer(store, session), answer(store, session)
    trials = trials_of(store, session)
    assert [store.undo(session.session).trial for _ in range(2)] == [trials[5], trials[4]]
    assert status_of(lambda: store.undo(session.session)) == 409
    assert store.current(session.session).trial == trials[4]
    assert status_of(lambda: store.undo(session.session, Undoable(trials[3], 2))) == 409
    answer(store, session), answer(store, session)
    with pytest.raises(StaleError):
        store.undo(session.session, Undoable(trials[4], 4))
    assert store.current(session.session).done == 6


def test_a_label_and_an_undo_of_the_same_revision_are_not_taken_for_each_other(store: LabelStore) -> None:
    session = begin(store)
    past_practice(store, session)
    trial = str(store.current(session.session).trial)
    answer(store, session)
    store.undo(session.session)
    with pytest.raises(StaleError):
        store.label(session.session, trial, 2, 5, 1.0)
    with pytest.raises(StaleError):
        store.undo(session.session, Undoable(trial, 1))
    assert rows(store, session) == 6


def test_practice_freezes_nothing_and_the_first_real_answer_does_once(store: LabelStore) -> None:
    session = begin(store)
    other = store.join(session.experiment)
    past_practice(store, session)
    past_practice(store, other)
    assert store.experiment(session.experiment).frozen_at is None
    answer(store, session)
    frozen = store.experiment(session.experiment).frozen_at
    assert frozen is not None
    answer(store, session), answer(store, other)
    assert store.experiment(session.experiment).frozen_at == frozen


def test_leaving_ends_a_session_and_keeps_its_answers(store: LabelStore) -> None:
    session = begin(store)
    answer(store, session)
    store.leave(session.session)
    left = store.session(session.session)
    assert left.left_early
    store.leave(session.session)
    assert store.session(session.session) == left
    now = store.current(session.session)
    assert (now.trial, now.finished, now.done) == (None, True, 1)
    assert status_of(lambda: store.label(session.session, trials_of(store, session)[1], 1, 3, 1.0)) == 409
    assert status_of(lambda: store.undo(session.session)) == 409
    assert {row.left_early for row in store.standing(session.experiment)} == {True}
    assert rows(store, session) == 1


def test_a_finished_session_is_not_one_that_was_left(store: LabelStore) -> None:
    session = begin(store)
    finish(store, session)
    store.leave(session.session)
    assert not store.session(session.session).left_early
    assert status_of(lambda: store.undo(session.session)) == 409


def test_a_closed_experiment_takes_nothing_more(store: LabelStore) -> None:
    session = begin(store)
    answer(store, session)
    store.close_experiment(session.experiment)
    closed = store.experiment(session.experiment).closed_at
    assert closed is not None
    store.close_experiment(session.experiment)
    assert store.experiment(session.experiment).closed_at == closed
    assert status_of(lambda: store.join(session.experiment)) == 409
    assert store.current(session.session).finished
    assert status_of(lambda: store.label(session.session, trials_of(store, session)[1], 1, 3, 1.0)) == 409
    assert rows(store, session) == 1


def test_standing_rows_say_what_analysis_needs(store: LabelStore) -> None:
    made, _ = store.create_experiment(own := design(form="pair"), STUDY, prepared(own))
    session = store.join(made.experiment, "Ada", "program")
    answer(store, session, 5)
    items = {item.item: item for item in store.items(made.experiment)}
    standing = store.standing(made.experiment)
    row = standing[0]
    assert (row.session, row.pseudonym, row.rater) == (session.session, "Ada", "program")
    assert (row.answer, row.seconds, row.hidden_seconds, row.revisions) == (5, 1.5, 0.5, 1)
    assert [row.revisions for row in standing[1:]] == [0] * 29
    for row in standing:
        assert row.right is not None
        left, right = items[row.left], items[row.right]
        assert left.pair == right.pair == row.pair
        random, trained = (right, left) if row.truth == "left" else (left, right)
        assert (row.variant, row.layer) == (random.variant, random.layer)
        assert trained.variant == "trained"
        assert row.density == pytest.approx((left.density * right.density) ** 0.5)
    for row in standing:
        if row.repeats is not None:
            original = standing[row.repeats]
            assert (row.left, row.right, row.kind) == (original.right, original.left, "repeat")
    assert all(item.statistics.keys() == {"density"} for item in items.values())


def test_a_single_latent_is_in_the_cell_of_its_pair(store: LabelStore) -> None:
    session = begin(store)
    items = {item.item: item for item in store.items(session.experiment)}
    for row in store.standing(session.experiment):
        item = items[row.left]
        assert (row.form, row.layer, row.density) == ("single", item.layer, item.density)
        assert row.truth == ("trained" if item.variant == "trained" else "random")
        assert row.variant in design().variants
        assert row.variant == item.variant or item.variant == "trained"


def test_many_threads_on_one_trial_write_it_once(store: LabelStore) -> None:
    session = begin(store)
    trial = str(store.current(session.session).trial)
    acks: list[Ack] = []
    barrier = threading.Barrier(8)

    def press(value: int) -> None:
        barrier.wait()
        acks.append(store.label(session.session, trial, 1, value, 1.0))

    _run([lambda value=value: press(1 + value % 6) for value in range(8)])
    assert [ack.written for ack in acks].count(True) == 1
    assert len(acks) == 8
    assert len({ack.answer for ack in acks}) == 1
    assert rows(store, session) == 1


def test_many_tabs_of_one_rater_answer_every_trial_once(store: LabelStore) -> None:
    session = begin(store)

    def press() -> None:
        while (now := store.current(session.session)).trial is not None:
            with suppress(PageError):
                store.label(session.session, now.trial, now.revision, 3)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        _run([press] * 6)
    finally:
        sys.setswitchinterval(interval)
    assert [row.revisions for row in store.standing(session.experiment)] == [1] * 30


def test_raters_do_not_get_into_each_others_way(store: LabelStore) -> None:
    made, _ = store.create_experiment(design(trials=10), STUDY, prepared(design(trials=10)))

    def rate() -> None:
        session = store.join(made.experiment)
        while (now := store.current(session.session)).trial is not None:
            assert store.shown(session.session, now.trial).left.contexts
            store.label(session.session, now.trial, now.revision, 3, 1.0)
            if now.done % 5 == 4 and (undoable := store.current(session.session).undoable):
                store.undo(session.session, undoable)
                again = store.current(session.session)
                store.label(session.session, str(again.trial), again.revision, 4, 1.0)
        store.standing(made.experiment)

    _run([rate] * 8)
    standing = store.standing(made.experiment)
    assert len(standing) == 8 * design(trials=10).counts.total
    assert all(row.event == "label" for row in standing)
    assert [p.session.finished_at is not None for p in sessions(store, made.experiment)] == [True] * 8


def _run(acts: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def guarded(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # handed on below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _act(store: LabelStore, session: str, step: str, trial: str, revision: int) -> None:
    acts: dict[str, Callable[[], object]] = {
        "label": lambda: store.label(session, trial, revision, 3),
        "skip": lambda: store.skip(session, trial, revision, "why"),
        "ahead": lambda: store.label(session, trial, revision + 1, 6),
        "again": lambda: store.label(session, trial, revision - 1, 6),
        "undo": lambda: store.undo(session),
        "leave": lambda: store.leave(session),
        "close": lambda: store.close_experiment(store.session(session).experiment),
    }
    try:
        acts[step]()
    except PageError as error:
        if error.status != 409:
            raise


STEPS = st.lists(st.sampled_from(["label"] * 4 + ["skip", "undo", "undo", "again", "ahead", "leave", "close"]))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_whatever_happens_rows_are_only_added(store: LabelStore, steps: list[str]) -> None:
    session = begin(store, design(trials=10, practice=1))
    log: list[object] = []
    for step in steps:
        now = store.current(session.session)
        _act(store, session.session, step, now.trial or trials_of(store, session)[0], now.revision)
        written = store.all_events(session.experiment)
        assert written[: len(log)] == log
        assert len(written) - len(log) <= (0 if step in ("again", "ahead", "leave", "close") else 1)
        log = list(written)
