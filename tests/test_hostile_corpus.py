"""A corpus that means harm goes through the whole pipeline and comes out on pages as text."""

import json
import re

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from lineup import main
from tests.pipeline.studies_for_tests import toy_study
from tests.pipeline.toy import toy_documents, toy_llama, toy_tokenizer

HOSTILE = ["<script>window.hacked=1</script>", "=cmd()", '"><img src=x onerror=alert(1)>', "</textarea>", "{{7*7}}"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A dashboard over a study whose every document is titled with markup and full of it, one token each."""
    folder = tmp_path_factory.mktemp("hostile")
    path = toy_study(folder, variants=["trained", "control"], layers=[0], name="hostile", title=HOSTILE[0])
    tokenizer, model = toy_tokenizer(), toy_llama()
    tokenizer.add_tokens(HOSTILE)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = []
    for number, (_, text) in enumerate(toy_documents()):
        words = text.split(" ")
        words[::9] = [HOSTILE[(number + at) % len(HOSTILE)] for at in range(len(words[::9]))]
        lines.append(json.dumps({"title": HOSTILE[number % len(HOSTILE)], "text": " ".join(words)}))
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert main(["run", str(path), "--runs", str(folder / "runs")]) == 0
    return TestClient(create_app(Settings(paths=(folder / "runs",), hosts=("testserver",))))


@pytest.mark.parametrize(
    "page",
    ["/", "/s/hostile", "/s/hostile/latents", "/s/hostile/compare", "/s/hostile/plots", "/s/hostile/tensors"]
    + [f"/s/hostile/latent/trained/0/{number}" for number in range(0, 96, 5)],
)
def test_the_corpus_stays_text(client: TestClient, page: str) -> None:
    response = client.get(page)
    assert response.status_code == 200
    assert "<script>window" not in response.text
    assert "<img src=x" not in response.text
    assert "</textarea>" not in response.text
    assert not re.search(r"<[^>]*\son[a-z]+=", re.sub(r'"[^"]*"', '""', response.text))
    assert "'unsafe-inline'" not in response.headers["Content-Security-Policy"]


def test_the_pages_do_show_it(client: TestClient) -> None:
    pages = "".join(client.get(f"/s/hostile/latent/trained/0/{number}").text for number in range(0, 96, 5))
    assert "&lt;script&gt;window.hacked=1&lt;/script&gt;" in pages
    assert "=cmd()" in pages
    assert "{{7*7}}" in pages
