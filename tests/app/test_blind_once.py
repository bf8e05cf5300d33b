"""Who has been told the truth remembers it: one session a browser, or a program, counts, and no latent twice."""

import csv
import io
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import httpx
import pytest
from blind_client import Rater, blind_study, invitation, own_link, serving, set_up
from small_experiment import STUDY, answer, begin, design, finish, past_practice, prepared, status_of
from starlette.testclient import TestClient

from app.blind.store import LabelStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_study(tmp_path_factory.mktemp("once"))


@pytest.fixture(scope="module")
def organiser(folder: Path) -> TestClient:
    return serving(folder)


def browser(organiser: TestClient) -> Rater:
    """Somebody with a browser of their own."""
    return Rater(TestClient(organiser.app, follow_redirects=True))


def remember(rater: Rater, memory: dict[str, int], rng: Random) -> float:
    """Answer to the end: what is in memory rightly, the rest by a coin; keep what the end tells. Gives the accuracy."""
    seen: list[tuple[str, int]] = []
    while not rater.finished:
        texts = "".join(re.findall(r'<span class="t a\d">.*?</span>', rater.page, re.DOTALL))
        seen.append((texts, memory.get(texts, rng.choice((1, 6)))))
        rater.answer(seen[-1][1])
    told = rater.pages[-1].context["result"]
    memory |= dict(reversed(seen)) | {seen[miss.position][0]: 7 - miss.answer for miss in told.missed}
    return float(told.share.value)


def results_of(organiser: TestClient, page: httpx.Response) -> Any:
    """What the organiser's page of the experiment shows now."""
    return organiser.get(own_link(page.text)).context["results"]


def states(organiser: TestClient, page: httpx.Response) -> list[str]:
    """Those of all raters in the order of joining."""
    return [rater.state for rater in results_of(organiser, page).raters]


def label_all(rater: Rater) -> Rater:
    """Answer whatever there is."""
    while not rater.finished:
        rater.answer(4)
    return rater


# ---- people ----


def test_four_sessions_of_one_browser_are_one_rater(organiser: TestClient) -> None:
    page = set_up(organiser, trials="20", practice="0", repeats="0", gold="0", min_gold="")
    someone, memory, rng = browser(organiser), dict[str, int](), Random(2)
    shares = []
    for number in range(4):
        someone.join(invitation(page.text), again="1", pseudonym=f"rater {number}")
        assert ("The whole session is practice: it is not counted." in someone.page) == (number > 0)
        shares.append(remember(someone, memory, rng))
    assert shares[3] > 0.8 > 0.7 > shares[0]  # remembering works, so it must not count
    found = organiser.post(f"{own_link(page.text)}/close").context["results"]
    assert (found.overall.raters, found.overall.share.n) == (1, 20)
    assert found.overall.share.value == shares[0]
    assert [rater.state for rater in found.raters] == ["counted"] + ["practice"] * 3
    assert found.raters[3].why.startswith("a later session of the same browser")


def test_a_later_session_says_that_it_is_practice_before_it_begins_and_wherever_it_is_shown(
    organiser: TestClient,
) -> None:
    page = set_up(organiser)
    someone = browser(organiser)
    first = someone.client.get(invitation(page.text)).text
    assert "not counted" not in first
    assert ">Begin</button>" in first
    label_all(someone.join(invitation(page.text), pseudonym="ada"))
    assert "practice" not in someone.page
    offered = someone.client.get(invitation(page.text)).text
    assert "What you can begin now is practice, and not counted: only the first session is" in offered
    assert "Begin a practice session</button>" in offered
    assert "You have ended a session as <b>ada</b>" in offered
    assert someone.join(invitation(page.text)).finished  # without `again` it is the result of the first
    label_all(someone.join(invitation(page.text), again="1", pseudonym="bea"))
    assert "<b>bea</b>, in a practice session that is not counted" in someone.page
    assert someone.pages[-1].context["result"].practice.startswith("This session is practice, and not counted")

    link = own_link(page.text)
    told = organiser.get(link)
    assert "practice: a later session of the same browser or program" in told.text
    assert "1 counted, 1 practice" in told.text
    assert "1 more session was practice, in no number." in told.context["method"]
    rows = list(csv.DictReader(io.StringIO(organiser.get(f"{link}/labels.csv").text)))
    assert {(row["pseudonym"], row["practice_session"]) for row in rows} == {("ada", "false"), ("bea", "true")}
    file = Path(organiser.app.state.labels.path).with_name("out.parquet")  # type: ignore[attr-defined]
    file.write_bytes(organiser.get(f"{link}/labels.parquet").content)
    sql = f"SELECT DISTINCT pseudonym, practice_session FROM '{file}' ORDER BY ALL"
    assert duckdb.sql(sql).fetchall() == [("ada", False), ("bea", True)]


def test_whoever_left_before_a_trial_that_counts_may_begin_again(organiser: TestClient) -> None:
    page = set_up(organiser)
    someone = browser(organiser).join(invitation(page.text)).answer(4)  # one of two practice trials
    someone.client.post("/blind/leave")
    label_all(someone.join(invitation(page.text), again="1"))
    assert states(organiser, page) == ["excluded", "counted"]
    other = browser(organiser).join(invitation(page.text)).answer(4).answer(4).answer(4)
    other.client.post("/blind/leave")
    label_all(other.join(invitation(page.text), again="1"))
    assert states(organiser, page)[2:] == ["excluded", "practice"]


def test_five_people_who_answered_nothing_are_not_counted(organiser: TestClient) -> None:
    page = set_up(organiser)
    for _ in range(5):
        browser(organiser).join(invitation(page.text))
    assert states(organiser, page) == ["not started"] * 5
    assert results_of(organiser, page).overall.raters == 0
    organiser.post(f"{own_link(page.text)}/close")
    assert states(organiser, page) == ["not started"] * 5


def test_a_rater_is_under_way_until_enough_is_labelled(organiser: TestClient) -> None:
    page = set_up(organiser, practice="0", repeats="0", gold="0", min_gold="", min_answered="0.5")
    some, few = browser(organiser), browser(organiser)
    some.join(invitation(page.text))
    for labels in range(5):
        found = results_of(organiser, page)
        assert found.raters[0].state == ("under way" if labels else "not started")
        assert found.overall.share.n == 0
        some.answer(4)
    few.join(invitation(page.text)).answer(4)
    found = results_of(organiser, page)
    assert (found.overall.share.n, [rater.state for rater in found.raters]) == (5, ["counted", "under way"])
    assert found.raters[1].why == "counted from 4 more labels on"
    few.client.post("/blind/leave")
    out = results_of(organiser, page).raters[1]
    assert (out.state, out.why) == ("excluded", "1 of 10 main trials labelled, fewer than 5")


# ---- several experiments on the same latents ----


def shown(organiser: TestClient, pseudonym: str, *kinds: str) -> set[tuple[str, int, int]]:
    """The latents in all trials of these kinds of one rater."""
    with organiser.app.state.labels.store._file.reading() as connection:  # type: ignore[attr-defined]
        sql = """SELECT i.variant, i.layer, i.latent FROM sessions s JOIN trials t USING (session) JOIN items i
                 ON i.experiment = s.experiment AND i.item = t.left_item WHERE s.pseudonym = ?
                 AND t.kind IN (SELECT value FROM json_each(?))"""
        return set(connection.execute(sql, [pseudonym, json.dumps(kinds)]).fetchall())


def test_latents_that_a_browser_has_rated_elsewhere_are_not_drawn(organiser: TestClient) -> None:
    pages = [set_up(organiser, repeats="0") for _ in range(3)]  # the same seed: the same pool, twice what a rater needs
    someone = browser(organiser)
    for number, page in enumerate(pages):
        label_all(someone.join(invitation(page.text), pseudonym=f"everywhere {number}"))
    first, second = (shown(organiser, f"everywhere {number}", "main", "gold") for number in (0, 1))
    assert len(first) == len(second) == 11
    assert not first & second
    assert [states(organiser, page) for page in pages] == [["counted"], ["counted"], ["practice"]]
    assert results_of(organiser, pages[2]).raters[0].why == "too few of the latents were new to this browser or program"
    another = set_up(organiser)
    assert (
        "you have met too many of its latents in another experiment"
        in someone.client.get(invitation(another.text)).text
    )
    assert "not counted" not in browser(organiser).client.get(invitation(another.text)).text


def test_one_session_at_a_time_so_that_no_end_tells_the_answers_of_another(organiser: TestClient) -> None:
    here, there = set_up(organiser), set_up(organiser, title="The other one")
    someone = browser(organiser).join(invitation(there.text))
    asked = someone.client.get(invitation(here.text)).text
    assert "You are in the middle of “The other one”" in asked
    assert f'formaction="{invitation(there.text)}"' in asked
    assert ">Begin" not in asked
    assert someone.client.post(invitation(here.text), data={"again": "1"}).status_code == 409
    assert states(organiser, here) == []
    someone.client.post("/blind/leave")
    assert someone.client.post(invitation(here.text)).status_code == 200
    assert states(organiser, here) == ["not started"]


def test_looking_at_an_old_result_opens_no_latents_while_a_session_is_open(organiser: TestClient) -> None:
    old, now = set_up(organiser), set_up(organiser)
    someone = label_all(browser(organiser).join(invitation(old.text)))
    assert someone.client.get("/s/small/latents").status_code == 200
    someone.join(invitation(now.text))
    assert someone.client.post(invitation(old.text)).status_code == 409
    assert someone.client.get("/s/small/latents").status_code == 403
    label_all(someone.go_on())
    assert someone.join(invitation(old.text)).finished
    assert someone.client.get("/s/small/latents").status_code == 200


# ---- programs ----


def join(organiser: TestClient, page: httpx.Response, **body: str) -> httpx.Response:
    """Accept an invitation as a program."""
    return organiser.post("/api/blind/sessions", json={"invite": invitation(page.text).rsplit("/", 1)[1]} | body)


def work(organiser: TestClient, joined: httpx.Response, trials: int = 1000) -> dict[str, Any]:
    """Answer as many trials, or all, and give the result if they were all."""
    headers = {"Authorization": f"Bearer {joined.json()['token']}"}
    for _ in range(trials):
        trial = organiser.get("/api/blind/trial", headers=headers).json()
        if trial["finished"]:
            break
        answered = {"trial": trial["trial"], "revision": trial["revision"], "answer": 4}
        assert organiser.post("/api/blind/answers", json=answered, headers=headers).status_code == 200
    result: dict[str, Any] = organiser.get("/api/blind/result", headers=headers).json()
    return result


@pytest.mark.parametrize("name", [{}, {"client": "gemma, prompt 2"}])
def test_four_sessions_of_one_program_are_one_rater(organiser: TestClient, name: dict[str, str]) -> None:
    page = set_up(organiser, min_gold="")
    for number in range(4):
        joined = join(organiser, page, **name)
        assert (joined.json()["counts"], joined.json()["practice"] == "") == (number == 0, number == 0)
        assert work(organiser, joined)["practice"] == joined.json()["practice"]
    found = results_of(organiser, page)
    assert [rater.state for rater in found.raters] == ["counted"] + ["practice"] * 3
    assert (found.overall.who, found.overall.raters, found.overall.share.n) == ("programs", 1, 10)


def test_programs_that_name_themselves_are_each_counted_and_stand_beside_people(organiser: TestClient) -> None:
    page = set_up(organiser, min_gold="")
    for client in ("one", "two"):
        work(organiser, join(organiser, page, client=client))
    assert states(organiser, page) == ["counted", "counted"]
    label_all(browser(organiser).join(invitation(page.text)))
    assert states(organiser, page) == ["program", "program", "counted"]
    assert results_of(organiser, page).overall.raters == 1


def test_a_program_that_broke_down_begins_again_unless_it_had_begun_to_count(organiser: TestClient) -> None:
    page, other = set_up(organiser, min_gold=""), set_up(organiser, seed="7")
    broken = join(organiser, page, client="judge")
    work(organiser, broken, trials=2)  # practice
    again = join(organiser, page, client="judge")
    assert again.json()["counts"]
    headers = {"Authorization": f"Bearer {broken.json()['token']}"}
    assert organiser.get("/api/blind/trial", headers=headers).json()["finished"]
    work(organiser, again, trials=3)
    for refused in (join(organiser, page, client="judge"), join(organiser, other, client="judge")):
        assert (refused.status_code, refused.json()["error"]) == (409, "One session at a time")
    assert join(organiser, other).json()["counts"]  # without a name, another program in every experiment
    work(organiser, again)
    assert states(organiser, page) == ["excluded", "counted"]


# ---- the file ----


def test_two_requests_at_once_begin_no_second_session_of_a_browser(store: LabelStore) -> None:
    session = begin(store)
    assert status_of(lambda: store.join(session.experiment, client=session.client)) == 409
    finish(store, session)
    later = store.join(session.experiment, client=session.client)
    assert (session.practice, later.practice, later.client) == (None, "again", session.client)
    assert store.outlook(session.experiment, session.client).own == later


def test_practice_sessions_freeze_nothing(store: LabelStore) -> None:
    session = begin(store)
    past_practice(store, session)
    answer(store, session)
    store.leave(session.session)
    with store._file.transaction() as connection:
        connection.execute("UPDATE experiments SET frozen_at = NULL")
    later = store.join(session.experiment, client=session.client)
    past_practice(store, later)
    answer(store, later)
    assert store.experiment(session.experiment).frozen_at is None


def test_latents_are_known_by_the_weights_of_their_sae(store: LabelStore) -> None:
    def made(**sha: str) -> str:
        own = design(pool=12)  # exactly what one rater needs
        saes = {f"{variant} {layer}": "x" for variant in ("trained", "step0", "control") for layer in (1, 3)}
        return store.create_experiment(own, STUDY | {"saes": saes | sha}, prepared(own))[0].experiment

    first, same, other = (
        made(),
        made(),
        made(**{f"{v} {n}": "y" for v in ("trained", "step0", "control") for n in (1, 3)}),
    )
    session = store.join(first)
    finish(store, session)
    assert store.outlook(same, session.client).practice == "known"
    assert store.outlook(other, session.client).practice is None
