"""The report and the bar of settings, as a browser sees them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from small_study import SCRIPT, Shape, write_small_study

from app.pages.report import write_report
from tests.live_server import running

MODELS = {"first": (0, 1), "a model with a name too long to stand beside another": (0, 3)}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dashboard over a study with several settings."""
    made = tmp_path_factory.mktemp("settings")
    shape = Shape(MODELS, hooks=("resid_post", "mlp_out"), saes=("topk", "pca"), sae_seeds=2)
    write_small_study(made / "wide.duckdb", latents=12, shape=shape, top_contexts=4)
    with running(made) as address:
        yield address


def report(runs: Path) -> Path:
    out = runs / "small-report.html"
    write_report(runs / "small.duckdb", out)
    return out


def test_the_report_opens_from_disk_without_a_request_or_an_error(page: Page, runs: Path) -> None:
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report(runs).as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [report(runs).as_uri()]
    expect(page.locator("h1")).to_have_text("A small study")
    expect(page.locator(".defs dd").first).to_contain_text(SCRIPT)
    assert page.locator("script").count() == 0
    plots = page.locator("svg.plot")
    assert plots.count() > 30
    line = plots.first.locator("path.line").first
    assert line.evaluate("e => getComputedStyle(e).stroke") == "rgb(181, 72, 0)"
    box = plots.first.bounding_box()
    assert box is not None
    for shape in plots.first.locator("path.mark").all():
        inside = shape.bounding_box()
        assert inside is not None
        assert box["x"] < inside["x"] < box["x"] + box["width"]
        assert box["y"] < inside["y"] < box["y"] + box["height"]


def test_the_report_fits_a_phone_and_paper(phone: Page, runs: Path) -> None:
    phone.goto(report(runs).as_uri())
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.emulate_media(media="print", color_scheme="dark")
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_setting_is_chosen_by_keyboard_and_keeps_the_page(page: Page, several: str) -> None:
    page.goto(f"{several}/s/wide/compare?layer=0&sort=density")
    menu = page.locator("details.menu")
    menu.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(menu.locator("ul")).to_be_visible()
    page.keyboard.press("Escape")
    expect(menu.locator("ul")).to_be_hidden()
    expect(menu.locator("summary")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/s/wide/compare?model=a+model*&layer=0&sort=density**")
    expect(page.locator(".side.left h2 a")).to_be_visible()
    page.keyboard.press("2")
    page.wait_for_url("**layer=3**")
    expect(page.locator(".picks [aria-current]", has_text="3")).to_be_visible()
    page.get_by_role("link", name="SAE seed: 1").click()
    page.wait_for_url("**/compare?*sae_seed=1&*layer=3*")


def test_settings_fit_a_phone_and_need_no_script(phone: Page, several: str) -> None:
    for view in ("", "/compare", "/plots", "/latents"):
        phone.goto(f"{several}/s/wide{view}")
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    browser = phone.context.browser
    assert browser is not None
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(f"{several}/s/wide/latents?layer=1")
    plain.get_by_role("link", name="SAE: pca").click()
    plain.wait_for_url("**/s/wide/latents?sae=pca&layer=1")
    context.close()
