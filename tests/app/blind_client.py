"""A rater without scripts: joins an experiment over its pages and answers trials by their forms."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.small_study import write_small_study

SETUP = {
    "title": "Small and blind",
    "layers": ["1", "3"],
    "variants": ["control"],
    "form": "single",
    "trials": "10",
    "practice": "2",
    "repeats": "0.2",
    "gold": "0.1",
    "contexts": "5",
}


def blind_study(folder: Path) -> Path:
    """A folder with a study that has enough latents for experiments."""
    write_small_study(folder / "small.duckdb", latents=200, top_contexts=8, layers=(1, 3))
    return folder


def serving(folder: Path, **settings: Any) -> TestClient:
    """A dashboard over the folder, as a browser of its own sees it."""
    return TestClient(create_app(Settings(paths=(folder,), **settings)), follow_redirects=True)


def set_up(client: TestClient, **changes: Any) -> httpx.Response:
    """The organiser's page of a new experiment."""
    return client.post("/s/small/blind", data=SETUP | changes)


def invitation(page: str) -> str:
    """The path of the raters' link on an organiser's page."""
    return re.search(r"/blind/join/[\w-]+", page)[0]  # type: ignore[index]


def own_link(page: str) -> str:
    """The path of the organiser's link."""
    return re.search(r"/blind/o/[\w-]+", page)[0]  # type: ignore[index]


@dataclass
class Rater:
    """Someone who labels in a browser without scripts."""

    client: TestClient
    pages: list[httpx.Response] = field(default_factory=list)

    def join(self, path: str, **form: str) -> "Rater":
        """Accept an invitation."""
        return self._see(self.client.post(path, data=form or {"pseudonym": ""}))

    def _see(self, response: httpx.Response) -> "Rater":
        self.pages.append(response)
        return self

    @property
    def page(self) -> str:
        """What is on the screen."""
        return self.pages[-1].text

    @property
    def practice(self) -> bool:
        """Whether it is a practice trial."""
        return "Practice " in self.page

    def hidden(self, form: str = "label") -> dict[str, str]:
        """The hidden fields of a form on the page."""
        part = re.search(rf'<form[^>]*action="/blind/{form}".*?</form>', self.page, re.DOTALL)
        assert part, self.page[:2000]
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', part[0]))

    def answer(self, answer: int, seconds: float = 2.0) -> "Rater":
        """Answer the trial on the page, and go on after what practice tells."""
        self._see(self.client.post("/blind/label", data=self.hidden() | {"answer": answer, "seconds": seconds}))
        return self.go_on() if 'class="answers told"' in self.page else self

    def go_on(self) -> "Rater":
        """Ask for what is to be done now."""
        return self._see(self.client.get("/blind/rate"))

    @property
    def finished(self) -> bool:
        """Whether the session is over."""
        return "Thank you" in self.page
