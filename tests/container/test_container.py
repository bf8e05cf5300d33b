"""What people do with the images: an empty server, a study run in a container, its latents seen, a study inside."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.container.engine import HARDENED, ROOT, Container, Engine, serving

TINY = {
    "name": "tiny", "title": "A tiny study", "layers": "[1]", "variants": "[trained, control]",
    "corpus.tokens": "24_064", "sae.d_sae": "512", "sae.k": "16", "sae.epochs": "1", "evaluate_ce_tokens": "256",
}  # fmt: skip
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def studied(engine: Engine, pipeline_image: str, volume: str) -> str:
    """The volume with a tiny study of the real model on it, run in the image that is for that."""
    changes = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    started = time.monotonic()
    words = ["--rm", *HARDENED, "--volume", f"{volume}:/data", pipeline_image, "run", "demo", "--runs", "/data"]
    said = engine.run(*words, *changes)
    print(f"\na tiny study in the container: {time.monotonic() - started:.0f} s")
    assert "complete: /data/tiny.duckdb" in said
    return volume


@pytest.fixture(scope="session")
def server(engine: Engine, serve_image: str, studied: str) -> Iterator[Container]:
    """The small image over that volume."""
    with serving(engine, serve_image, "--volume", f"{studied}:/data") as container:
        yield container


def test_an_empty_volume_gets_a_page_that_says_how_to_get_a_study(engine: Engine, serve_image: str) -> None:
    with serving(engine, serve_image) as empty:
        page = empty.get("/")
        assert "No study here yet" in page
        assert "docker compose run --rm study" in page
        assert json.loads(empty.get("/readyz")) == {"status": "ok", "studies": 0}


def test_the_serving_image_has_no_torch_and_is_small(engine: Engine, serve_image: str) -> None:
    packages = engine.run("--rm", "--entrypoint", "ls", serve_image, "/opt/lineup/lib/python3.11/site-packages").split()
    assert "duckdb" in packages
    assert not {"torch", "sae_lens", "transformer_lens", "scipy", "pandas"} & set(packages)
    assert int(engine("image", "inspect", serve_image, "--format", "{{.Size}}")) < 350e6


def test_it_is_nobodys_root_and_writes_only_to_the_volume(server: Container) -> None:
    shell = (server.name, "sh", "-c")
    assert server.engine("exec", *shell, "id -u") == "10001"
    server.engine("exec", *shell, "touch /data/kept /tmp/gone")
    denied = server.engine("exec", *shell, "touch /opt/lineup/x /studies/x || echo denied", check=False)
    assert denied.endswith("denied")


def test_a_page_of_latents_comes_out_of_the_container(server: Container) -> None:
    page = server.get("/s/tiny/latents?variant=control&layer=1")
    assert len(re.findall(r"/s/tiny/latent/control/1/\d+", page)) >= 20
    assert "Set it up" in server.get("/s/tiny/blind")


def test_a_browser_sees_a_pair_of_latents(server: Container) -> None:
    with sync_playwright() as playwright:
        found = next(name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name))
        browser = playwright.chromium.launch(executable_path=shutil.which(found), args=ARGUMENTS)
        page = browser.new_page()
        page.goto(f"{server.url}/s/tiny/compare")
        for side in ("left", "right"):
            expect(page.locator(f".side.{side} .context").first).to_be_visible()
            expect(page.locator(f".side.{side} .main-svg").first).to_be_visible()
        browser.close()


def test_sigterm_is_enough_and_a_new_container_finds_the_data(engine: Engine, serve_image: str, studied: str) -> None:
    with serving(engine, serve_image, "--volume", f"{studied}:/data") as first:
        first.engine("exec", first.name, "sh", "-c", "echo kept >/data/note")
        started = time.monotonic()
        engine("stop", "--time", "10", first.name)
        print(f"\nstopped in {time.monotonic() - started:.1f} s, with the engine's own work")
        assert first.inspect("{{.State.ExitCode}}") in ("0", "143")
    with serving(engine, serve_image, "--volume", f"{studied}:/data") as second:
        assert engine("exec", second.name, "cat", "/data/note") == "kept"
        assert "A tiny study" in second.get("/")


def test_a_finished_study_can_lie_inside_the_image(engine: Engine, server: Container) -> None:
    inside = ROOT / "runs" / "container-check.duckdb"
    inside.parent.mkdir(exist_ok=True)
    try:
        engine("cp", f"{server.name}:/data/tiny.duckdb", str(inside))
        tag = engine.build("latent-lineup:with-study", STUDY=str(Path("runs") / inside.name))
        with serving(engine, tag) as alone:
            assert "/s/container-check/latent/trained/1/" in alone.get("/s/container-check/latents?layer=1")
        engine("image", "rm", "--force", tag)
    finally:
        inside.unlink(missing_ok=True)
