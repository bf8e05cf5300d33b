"""Blind labelling over its pages: setting up, labelling, the end, and who is kept out of what."""

import csv
import io
import re
from pathlib import Path

import duckdb
import pytest
from blind_client import Rater, blind_study, invitation, own_link, serving, set_up
from starlette.testclient import TestClient


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_study(tmp_path_factory.mktemp("blind"))


@pytest.fixture(scope="module")
def organiser(folder: Path) -> TestClient:
    return serving(folder)


def rater(organiser: TestClient) -> Rater:
    """A rater with a cookie jar of their own on the same server."""
    return Rater(TestClient(organiser.app, follow_redirects=True))


def test_the_form_works_as_it_stands_and_says_how_many_labels_it_takes(organiser: TestClient) -> None:
    page = organiser.get("/s/small/blind")
    assert page.context["values"].layers == ["1", "3"]
    assert page.context["labels"] == 204  # for 60%, the form's own example
    assert organiser.get("/blind/needed?accuracy=0.7&trials=10").context["raters"] == 6  # 52 labels
    assert organiser.get("/blind/needed?accuracy=0.5").status_code == 400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": []}, "layers"),
        ({"layers": ["7"]}, "no SAE at layer 7"),
        ({"variants": ["step0"]}, "Unknown random variant"),
        ({"trials": "11"}, "trials is &#39;11&#39;"),
        ({"trials": "2000"}, "pairs"),
        ({"trials": "00"}, "trials is &#39;00&#39;"),
        ({"trials": "9" * 5000}, "trials is &#39;99999"),
        ({"contexts": "20"}, "contexts"),
        ({"margin": "much"}, "margin is &#39;much&#39;"),
        ({"title": ""}, "title"),
    ],
)
def test_a_design_that_cannot_be_comes_back_with_what_is_wrong_and_what_was_typed(
    organiser: TestClient, change: dict[str, object], words: str
) -> None:
    page = set_up(organiser, **{"title": "What I typed"} | change)
    assert page.status_code == 400
    assert words in re.search(r'role="alert">(.*?)</p>', page.text)[1]  # type: ignore[index]
    if "title" not in change:
        assert 'value="What I typed"' in page.text


def test_a_rule_about_gold_that_cannot_apply_says_so_while_it_is_filled_in_and_when_it_is_made(
    organiser: TestClient,
) -> None:
    assert "rule about gold" not in organiser.get("/s/small/blind").text
    asked = {"trials": "10", "gold": "0.1", "min_gold": "0.6"}
    note = "it needs 3 of them, and a rater has 1. It takes 26 trials."
    assert note in organiser.get("/blind/needed", params=asked).text
    for change in ({"trials": "26"}, {"min_gold": ""}, {"gold": ""}, {"gold": "nan"}, {"gold": "9"}):
        assert "rule about gold" not in organiser.get("/blind/needed", params=asked | change).text
    assert note in set_up(organiser).text
    assert "rule about gold" not in set_up(organiser, trials="26", gold="0.1").text
    assert note in set_up(organiser, title="").text  # what is wrong is something else, and this is said with it
    body = {"title": "t", "study": "small", "form": "single", "trials": 10, "contexts": 5, "gold": 0.1}
    assert organiser.post("/api/blind/experiments", json=body).json()["note"].endswith(note)
    assert organiser.post("/api/blind/experiments", json=body | {"min_gold": None}).json()["note"] == ""


def test_a_key_keeps_others_from_setting_up(folder: Path, tmp_path: Path) -> None:
    with serving(folder, organiser_key="sesame", labels=tmp_path / "labels.sqlite") as client:
        assert "key is missing" in set_up(client).text
        assert "not the right one" in set_up(client, organiser_key="sésame").text
        assert "/blind/join/" in set_up(client, organiser_key="sesame").text
        refused = client.post("/api/blind/experiments", json={"title": "x"})
        assert (refused.status_code, refused.json()["message"]) == (403, "The organiser's key is missing.")


@pytest.mark.parametrize("form", ["single", "pair"])
def test_a_whole_session(organiser: TestClient, form: str) -> None:
    page = set_up(organiser, form=form)
    someone = rater(organiser).join(invitation(page.text), pseudonym="=cmd()")
    told = 0
    while not someone.finished:
        before = len(someone.pages)
        practice = someone.practice
        someone.answer(5)
        truth_told = any("transformer.</p>" in p.text or "It is from" in p.text for p in someone.pages[before:])
        told += practice and len(someone.pages) == before + 2
        assert practice or not truth_told or someone.finished
    assert told == 2
    result = someone.pages[-1].context["result"]
    assert result.share.n == 10
    assert result.share.correct == 5  # the same answer throughout is right in half: trials are balanced
    assert len(result.missed) == 5
    link = re.search(r'href="(/s/small/latent/[^"]+)"', someone.page)
    assert link
    assert someone.client.get(link[1]).status_code == 200  # the session is over: the browser is open again
    seen = organiser.get(own_link(page.text)).context["results"]
    assert seen.overall.share.n == 10
    assert [outcome.pseudonym for outcome in seen.raters] == ["=cmd()"]


def test_downloads_and_closing(organiser: TestClient) -> None:
    page = set_up(organiser)
    link = own_link(page.text)
    someone = rater(organiser).join(invitation(page.text), pseudonym="=cmd()")
    while not someone.finished:
        someone.answer(4)
    rows = list(csv.DictReader(io.StringIO(organiser.get(f"{link}/labels.csv").text)))
    assert {row["pseudonym"] for row in rows} == {"'=cmd()"}
    assert len(rows) == 2 + 10 + 2 + 1
    parquet = organiser.get(f"{link}/labels.parquet")
    file = Path(organiser.app.state.labels.path).with_name("out.parquet")  # type: ignore[attr-defined]
    file.write_bytes(parquet.content)
    assert duckdb.sql(f"SELECT count(*) FROM '{file}'").fetchall() == [(15,)]
    closed = organiser.post(f"{link}/close")
    assert closed.context["results"].final
    assert "10 " in organiser.get(f"{link}/method.txt").text
    late = rater(organiser).join(invitation(page.text))
    assert late.pages[-1].status_code == 409


def test_a_double_click_is_one_label_and_a_second_tab_is_told(organiser: TestClient) -> None:
    page = set_up(organiser, practice="0")
    someone = rater(organiser).join(invitation(page.text))
    first = someone.hidden() | {"answer": "6", "seconds": "1.5"}
    for _ in range(3):
        assert someone.client.post("/blind/label", data=first).status_code == 200
    stale = someone.client.post("/blind/label", data=first | {"revision": "2", "answer": "1"})
    assert "answered in another tab" in stale.text
    assert organiser.get(own_link(page.text)).context["results"].overall.share.n <= 1
    someone.go_on()
    assert "2 of 13" in someone.page


def test_undo_shows_the_trial_again_and_the_new_answer_counts(organiser: TestClient) -> None:
    page = set_up(organiser, practice="0", repeats="0", gold="0", min_gold="")
    someone = rater(organiser).join(invitation(page.text))
    shown = re.sub(r'name="\w+" value="[^"]*"', "", someone.page)
    someone.answer(1)
    someone._see(someone.client.post("/blind/undo", data=someone.hidden("undo")))
    assert re.sub(r'name="\w+" value="[^"]*"', "", someone.page) == shown
    while not someone.finished:
        someone.answer(6)
    answers = someone.pages[-1].context["result"]
    assert answers.share.n == 10
    assert {missed.answer for missed in answers.missed} == {6}


def test_skipping_takes_a_reason(organiser: TestClient) -> None:
    page = set_up(organiser, practice="0")
    someone = rater(organiser).join(invitation(page.text))
    hidden = someone.hidden("skip")
    assert someone.client.post("/blind/skip", data=hidden).status_code == 400
    someone.client.post("/blind/skip", data=hidden | {"reason": "other"})
    someone.go_on()
    assert "2 of 13" in someone.page
    assert organiser.get(own_link(page.text)).context["results"].raters[0].skipped <= 1


def test_a_break_is_offered_every_fifty_trials_and_the_trial_after_it_is_not_lost(organiser: TestClient) -> None:
    page = set_up(organiser, trials="60", practice="2", repeats="0", gold="0")
    someone = rater(organiser).join(invitation(page.text))
    breaks = 0
    for _ in range(62):
        if "Time for a break?" in someone.page:
            assert "50 of 60 trials are done" in someone.page
            breaks += 1
            someone.go_on()
        someone.answer(4)
    assert breaks == 1
    assert someone.finished


def test_latents_are_closed_to_a_rater_until_the_session_is_over(organiser: TestClient) -> None:
    page = set_up(organiser)
    someone = rater(organiser).join(invitation(page.text))
    closed = ["/s/small/latents", "/s/small/latents?q=court", "/s/small/latent/trained/1/0", "/s/small/compare"]
    for path in [*closed, "/s/small/plots"]:
        refused = someone.client.get(path)
        assert refused.status_code == 403
        assert "/blind/rate" in refused.text
        assert organiser.get(path).status_code == 200
    someone._see(someone.client.post("/blind/leave"))
    assert "You left early" in someone.page
    assert someone.client.get(closed[0]).status_code == 200


def test_a_session_goes_on_after_the_server_was_restarted(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.sqlite"
    with serving(folder, labels=labels) as first:
        page = set_up(first)
        someone = Rater(first).join(invitation(page.text)).answer(4).answer(2).answer(5)
        cookies = dict(first.cookies)
        place = re.search(r"\d+ of 13", someone.page)[0]  # type: ignore[index]
    with serving(folder, labels=labels) as second:
        second.cookies.update(cookies)
        assert place in Rater(second).go_on().page


@pytest.mark.parametrize("cookie", ["", "x", "x.y", "{session}.", "{session}.0000", "other.{signature}"])
def test_a_cookie_that_was_not_signed_here_opens_nothing(organiser: TestClient, cookie: str) -> None:
    someone = rater(organiser).join(invitation(set_up(organiser).text))
    session, _, signature = someone.client.cookies["lineup_rater"].rpartition(".")
    forged = rater(organiser)
    forged.client.cookies["lineup_rater"] = cookie.format(session=session, signature=signature)
    assert forged.go_on().pages[-1].status_code == 403


def test_cookie_and_headers_of_a_trial(organiser: TestClient) -> None:
    someone = rater(organiser)
    joined = TestClient(organiser.app, follow_redirects=False).post(invitation(set_up(organiser).text), data={"x": ""})
    assert re.search(r"HttpOnly; .*SameSite=lax", joined.headers["set-cookie"], re.IGNORECASE)
    someone.join(invitation(set_up(organiser).text))
    assert someone.pages[-1].headers["Cache-Control"] == "no-store"
    assert "etag" not in someone.pages[-1].headers


@pytest.mark.parametrize("path", ["/blind/join/none", "/blind/o/none", "/blind/o/none/labels.csv"])
def test_a_link_that_leads_nowhere_is_a_404(organiser: TestClient, path: str) -> None:
    assert organiser.get(path).status_code == 404


def test_a_second_server_over_the_same_labels_says_so_and_still_shows_studies(folder: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    labels = tmp_path / "labels.sqlite"
    hold = (
        f"import pathlib, sys, app.blind.store as s; c = s.LabelStore(pathlib.Path({str(labels)!r}));"
        " print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with serving(folder, labels=labels) as client:
            refused = set_up(client)
            assert refused.status_code in (400, 503)
            assert "in use by another program" in refused.text
            assert client.get("/s/small/latents").status_code == 200
        assert other.stdin is not None
        other.stdin.close()
