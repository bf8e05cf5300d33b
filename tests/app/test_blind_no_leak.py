"""Nothing that a rater's browser receives tells trained from random but the evidence itself.

Every response of several hundred trials is taken apart: bytes, headers, cookies, counts of elements, time. Two laws:
with texts and levels blanked out, all pages of one kind are the same, character for character; and neither a classifier
on the numbers nor the time can tell. The same checks are shown to see each of several leaks that are put in on purpose.

The second law is decided by chance, so rarely wrong: each of the three kinds of page has three p-values (see `chances`)
and is a leak where one of them is below `ALARM` = 1e-4 / 9. Each p-value is exact or too large, so without a leak the
suite sounds a false alarm in at most 9 · 1e-4 / 9 = 1e-4 of its runs. Nothing is assumed of times but that the load on
the machine does not know the truth.
"""

import itertools
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
from numpy.typing import NDArray
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.main import create_app
from app.settings import Settings
from core.resampling import deal_folds, logistic_scores

TRIALS = 300
LOOKS = 3
"""How often a page is asked for, so that one of them is likely to come undisturbed on a busy machine."""
KINDS = [("single", 1), ("pair", 1), ("single", 3)]
"""Forms and evidence tiers."""
ALARM = 1e-4 / (3 * len(KINDS))
"""A p-value below it is a leak."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_study(tmp_path_factory.mktemp("leak"))


@dataclass(frozen=True)
class Seen:
    """A trial as it came, each time; whether it is trained (or has the trained one on the right), its (left) latent."""

    looks: list[httpx.Response]
    truth: bool
    latent: int

    @property
    def response(self) -> httpx.Response:
        """As it came first."""
        return self.looks[0]

    @property
    def seconds(self) -> list[float]:
        """What each time took."""
        return [look.elapsed.total_seconds() for look in self.looks]


def trials_of(client: TestClient, form: str, tier: int, looks: int = LOOKS) -> list[Seen]:
    """The trials of several raters."""
    page = set_up(client, form=form, tier=str(tier), trials="50", practice="0", repeats="0", gold="0", min_gold="")
    experiment = client.app.state.labels.store.experiment_by_organiser(own_link(page.text).rsplit("/", 1)[1])  # type: ignore[attr-defined]
    seen: dict[str, list[httpx.Response]] = {}
    for _ in range(TRIALS // 50):
        rater = Rater(TestClient(client.app, follow_redirects=True)).join(invitation(page.text))
        while not rater.finished:
            if "/blind/label" in rater.page:
                seen[rater.hidden()["trial"]] = [rater.pages[-1], *(rater.go_on().pages[-1] for _ in range(looks - 1))]
                rater.answer(4)
            else:
                rater.go_on()
    events = client.app.state.labels.store.all_events(experiment.experiment)  # type: ignore[attr-defined]
    facts = {event.trial: (event.truth in ("trained", "right"), event.left) for event in events}
    return [Seen(found, *facts[trial]) for trial, found in seen.items()]


def skeleton(page: str) -> str:
    """A page without what must differ: the trial's name, texts and levels of tokens, how far the session is."""
    page = re.sub(r'<span class="t a\d">.*?</span>', "<t>", page, flags=re.DOTALL)
    page = re.sub(r'name="(trial|revision)" value="[^"]*"', "", page)
    page = re.sub(r'<p class="num muted" data-announce>.*?</p>|<progress[^>]*>', "", page)
    page = re.sub(r'<form method="post" action="/blind/undo".*?</form>', "", page, flags=re.DOTALL)
    page = re.sub(r'<svg class="bars".*?</svg>|<div class="effects.*?</div></div>', "<evidence>", page, flags=re.DOTALL)
    return re.sub(r" +$", "", page)


def numbers(response: httpx.Response) -> list[float]:
    """What can be counted about a response without reading the evidence; its time is apart."""
    text = response.text
    found = [float(len(response.content)), float(len(response.headers))]
    found += [float(sum(len(v) for v in response.headers.values())), float(len(response.cookies))]
    found += [float(text.count(f"<{tag}")) for tag in ("span", "p", "li", "div", "input", "button", "svg", "rect")]
    found += [float(len(re.findall(pattern, text))) for pattern in (r"class=", r'="', r"\n", "<!--", " id=")]
    token = re.search(r'name="trial" value="([^"]*)"', text)
    assert token
    return [*found, float(len(token[1])), float(sum(map(ord, token[1])))]


def ranks(values: NDArray[Any]) -> NDArray[np.int64]:
    """Twice the rank of each value, so that ties have whole numbers too."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((2 * np.cumsum(count) - count + 1)[place])


def p_above(values: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """How likely the true ones' ranks would sum to this or more if truths were dealt out at random.

    Exact, ties included (a permutation test that goes through all permutations): it counts, one item after another, how
    many choices of so many items have each sum.
    """
    places = ranks(values)
    places = places // np.gcd.reduce(places)
    chosen, found = int(truth.sum()), int(places[truth].sum())
    most = int(np.sort(places)[-chosen:].sum())
    ways = np.zeros((chosen + 1, most + 1))
    ways[0, 0] = 1
    for place in places:
        ways[1:, place:] += ways[:-1, :-place]
    return float(ways[chosen, found:].sum() / ways[chosen].sum())


def p_either(values: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """The same, for a sum that is small or large."""
    return min(1.0, 2 * min(p_above(values, truth), p_above(-values, truth)))


def chances(trials: list[Seen]) -> dict[str, float]:
    """How likely what was seen is if it knows nothing of the truth, which belongs to a latent and is permuted with it.

    `numbers`: a classifier learns from each half of the latents and ranks the other one; only a right order counts, and
    either half may show it. `time`: the mean rank of a latent's pages when they first came. `quickest`: the least time
    in which they ever came, as a busy machine can only add to what the server takes.
    """
    truths = np.array([trial.truth for trial in trials])
    names, first, latent = np.unique([trial.latent for trial in trials], return_index=True, return_inverse=True)
    truth = truths[first]

    def by_latent(values: NDArray[Any], summary: Callable[[NDArray[Any]], Any]) -> NDArray[Any]:
        return np.array([summary(values[latent == number]) for number in range(len(names))])

    half = deal_folds(truths, latent, 2, np.random.default_rng(0))
    scores = by_latent(logistic_scores(np.array([numbers(t.response) for t in trials]), truths, half, 10.0), np.mean)
    seconds = np.array([trial.seconds for trial in trials])
    return {
        "numbers": min(1.0, 2 * min(p_above(scores[own], truth[own]) for own in (half[first] == 0, half[first] == 1))),
        "time": p_either(by_latent(ranks(seconds[:, 0]), np.mean), truth),
        "quickest": p_either(by_latent(seconds.min(axis=1), np.min), truth),
    }


@pytest.mark.parametrize(
    "values", [[3, 1, 4, 1, 5, 9, 2, 6], [1, 1, 1, 2, 2, 2, 2, 5], [0.25, 7, 7, 7, 0.5, 0.125, 8, 7], [1] * 8]
)
def test_a_p_value_counts_all_permutations(values: list[float]) -> None:
    array, truth = np.array(values), np.arange(8) % 3 == 1
    sums = [ranks(array)[list(chosen)].sum() for chosen in itertools.combinations(range(8), 3)]
    above, below = (np.mean(share) for share in (sums >= ranks(array)[truth].sum(), sums <= ranks(array)[truth].sum()))
    assert p_above(array, truth) == pytest.approx(above, rel=1e-12)
    assert p_either(array, truth) == pytest.approx(min(1, 2 * min(above, below)), rel=1e-12)


def test_ranks_of_equal_values_are_their_mean() -> None:
    assert ranks(np.array([5.0, 1, 5, 7, 5])).tolist() == [2 * 3, 2 * 1, 2 * 3, 2 * 5, 2 * 3]


@pytest.mark.parametrize(("form", "tier"), KINDS)
def test_pages_tell_nothing_but_the_evidence(folder: Path, tmp_path: Path, form: str, tier: int) -> None:
    with serving(folder, labels=tmp_path / "labels.sqlite") as client:
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
    assert min((found := chances(trials)).values()) >= ALARM, found


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
    app = create_app(Settings(paths=(folder,), labels=tmp_path / "labels.sqlite"))
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
    trials = trials_of(TestClient(app, follow_redirects=True), "single", 1, LOOKS if how == "time" else 1)
    app.state.labels.close()
    found = chances(trials)
    assert found["quickest" if how == "time" else "numbers"] < ALARM, found


def test_practice_feedback_and_the_end_are_all_that_says_the_truth(folder: Path, tmp_path: Path) -> None:
    with serving(folder, labels=tmp_path / "labels.sqlite") as client:
        rater = Rater(client).join(invitation(set_up(client, practice="4").text))
        while not rater.finished:
            rater.answer(2)
    told = [page for page in rater.pages if "It is from" in page.text]
    assert len(told) == 4
    assert all('class="answers told"' in page.text for page in told)
