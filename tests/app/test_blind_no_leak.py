"""Nothing that a rater's browser receives tells trained from random but the evidence itself.

Every response of several hundred trials is taken apart: bytes, headers, cookies, counts of elements, time. Two laws:
with texts and levels blanked out, all pages of one kind are the same, character for character; and a classifier on the
numbers cannot tell. The same check is shown to see each of several leaks that are put in on purpose.
"""

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from blind_client import Rater, blind_study, invitation, own_link, serving, set_up
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.agreement import bootstrap_auroc, logistic_cv
from app.main import create_app
from app.settings import Settings

TRIALS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_study(tmp_path_factory.mktemp("leak"))


@dataclass(frozen=True)
class Seen:
    """A trial as it came, whether it is trained (or has the trained one on the right), and its (left) latent."""

    response: httpx.Response
    truth: bool
    latent: int


def trials_of(client: TestClient, form: str, tier: int) -> list[Seen]:
    """The trials of several raters."""
    page = set_up(client, form=form, tier=str(tier), trials="50", practice="0", repeats="0", gold="0", min_gold="")
    experiment = client.app.state.labels.store.experiment_by_organiser(own_link(page.text).rsplit("/", 1)[1])  # type: ignore[attr-defined]
    seen: dict[str, httpx.Response] = {}
    for _ in range(TRIALS // 50):
        rater = Rater(TestClient(client.app, follow_redirects=True)).join(invitation(page.text))
        while not rater.finished:
            if "/blind/label" in rater.page:
                seen[rater.hidden()["trial"]] = rater.pages[-1]
                rater.answer(4)
            else:
                rater.go_on()
    events = client.app.state.labels.store.all_events(experiment.experiment)  # type: ignore[attr-defined]
    facts = {event.trial: (event.truth in ("trained", "right"), event.left) for event in events}
    return [Seen(response, *facts[trial]) for trial, response in seen.items()]


def skeleton(page: str) -> str:
    """A page without what must differ: the trial's name, texts and levels of tokens, how far the session is."""
    page = re.sub(r'<span class="t a\d">.*?</span>', "<t>", page, flags=re.DOTALL)
    page = re.sub(r'name="(trial|revision)" value="[^"]*"', "", page)
    page = re.sub(r'<p class="num muted" data-announce>.*?</p>|<progress[^>]*>', "", page)
    page = re.sub(r'<form method="post" action="/blind/undo".*?</form>', "", page, flags=re.DOTALL)
    page = re.sub(r'<svg class="bars".*?</svg>|<div class="effects.*?</div></div>', "<evidence>", page, flags=re.DOTALL)
    return re.sub(r" +$", "", page)


def numbers(response: httpx.Response) -> list[float]:
    """What can be counted about a response without reading the evidence."""
    text = response.text
    found = [float(len(response.content)), response.elapsed.total_seconds(), float(len(response.headers))]
    found += [float(sum(len(v) for v in response.headers.values())), float(len(response.cookies))]
    found += [float(text.count(f"<{tag}")) for tag in ("span", "p", "li", "div", "input", "button", "svg", "rect")]
    found += [float(len(re.findall(pattern, text))) for pattern in (r"class=", r'="', r"\n", "<!--", " id=")]
    token = re.search(r'name="trial" value="([^"]*)"', text)
    assert token
    return [*found, float(len(token[1])), float(sum(map(ord, token[1])))]


def told_apart(trials: list[Seen]) -> tuple[float, float]:
    """The interval of the AUROC of a classifier on the numbers, on latents that it has not seen."""
    features = np.array([numbers(trial.response) for trial in trials])
    truths, latents = [trial.truth for trial in trials], [trial.latent for trial in trials]
    rng = np.random.default_rng(0)
    scores = logistic_cv(features, truths, 5, rng=rng, ridge=10.0, groups=latents)
    found = bootstrap_auroc(truths, scores, groups=latents, rng=rng, confidence=0.999)  # CI runs it often
    return found.low, found.high


@pytest.mark.parametrize(("form", "tier"), [("single", 1), ("pair", 1), ("single", 3)])
def test_pages_tell_nothing_but_the_evidence(folder: Path, tmp_path: Path, form: str, tier: int) -> None:
    with serving(folder, labels=tmp_path / "labels.duckdb") as client:
        trials = trials_of(client, form, tier)
    responses = [trial.response for trial in trials]
    assert len(trials) == TRIALS
    assert sum(trial.truth for trial in trials) == TRIALS / 2
    assert len({len(response.content) for response in responses}) == 1
    assert len({skeleton(response.text) for response in responses}) == 1
    assert len({frozenset(name for name in r.headers) for r in responses}) == 1
    assert len({tuple(v for k, v in r.headers.items() if k != "date") for r in responses}) == 1
    for response in responses:
        words = re.sub(r'<span class="t a\d">.*?</span>', "", response.text, flags=re.DOTALL)
        assert not re.search(r"rerandomized|control|resid|layer|latent/|(?<!&)#\d", words), words
    low, high = told_apart(trials)
    assert low <= 0.5 <= high


class Leak:
    """Wraps the app and lets the truth of the trial that a page shows change something about the response."""

    def __init__(self, app: ASGIApp, truth: Callable[[str], bool], how: str) -> None:
        self.app, self.truth, self.how = app, truth, how

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: dict[str, Any] = {}

        async def altered(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            if message["type"] != "http.response.body":
                return
            body = message["body"]
            token = re.search(rb'name="trial" value="([^"]*)"', body)
            await self.send(send, start, body, bool(token) and self.truth(token[1].decode()))  # type: ignore[index]

        await self.app(scope, receive, altered)

    async def send(self, send: Callable[[Message], Awaitable[None]], start: Message, body: bytes, truth: bool) -> None:
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        if self.how == "a longer page":
            body += b" " * truth
        elif self.how == "a header":
            headers += [(b"x-cache", b"hit")] * truth
        elif self.how == "an element":
            body = body.replace(b"<ol", b"<p></p><ol") if truth else body
        elif self.how == "time" and truth:
            time.sleep(0.02)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("how", ["a longer page", "a header", "an element", "time"])
def test_a_leak_that_is_put_in_is_seen(folder: Path, tmp_path: Path, how: str) -> None:
    app = create_app(Settings(paths=(folder,), labels=tmp_path / "labels.duckdb"))
    known: dict[str, bool] = {}

    def truth(trial: str) -> bool:
        if trial not in known:
            store = app.state.labels.store
            with store._file.reading() as connection:
                rows = connection.execute("SELECT trial, truth FROM trials").fetchall()
            known.update({name: value in ("trained", "right") for name, value in rows})
        return known[trial]

    inner = app.build_middleware_stack()
    app.middleware_stack = Leak(inner, truth, how)
    trials = trials_of(TestClient(app, follow_redirects=True), "single", 1)
    app.state.labels.close()
    low, _ = told_apart(trials)
    assert low > 0.5


def test_practice_feedback_and_the_end_are_all_that_says_the_truth(folder: Path, tmp_path: Path) -> None:
    with serving(folder, labels=tmp_path / "labels.duckdb") as client:
        rater = Rater(client).join(invitation(set_up(client, practice="4").text))
        while not rater.finished:
            rater.answer(2)
    told = [page for page in rater.pages if "It is from" in page.text]
    assert len(told) == 4
    assert all('class="answers told"' in page.text for page in told)
