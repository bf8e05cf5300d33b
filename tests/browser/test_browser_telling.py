"""Many random variants at a glance, in a real browser."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from small_study import Shape, write_small_study

NAMES = ("trained", "scale:4", "control", "scale:0.25", "gain:2", "permuted")


@pytest.fixture(scope="module")
def sweep(runs: Path, address: str) -> str:
    """The address of a study with five random variants at three layers."""
    shape = Shape({"toy": (0, 1, 3)}, variants=NAMES)
    write_small_study(runs / "sweep.duckdb", latents=40, shape=shape, top_contexts=1, tell=True)
    return f"{address}/s/sweep"


def test_a_layer_and_a_variant_are_chosen_without_leaving_the_page(page: Page, sweep: str) -> None:
    page.goto(sweep)
    heat = page.locator("table.heat")
    expect(heat.locator("tbody tr")).to_have_count(5)
    page.evaluate("window.stayed = true")
    page.locator(".heat-bar .picks").get_by_text("3", exact=True).click()
    expect(page).to_have_url(f"{sweep}?layer=3")
    expect(heat.locator("thead tr")).to_have_count(1)
    assert page.evaluate("window.stayed")
    heat.locator("tbody th a").nth(2).click()
    expect(page.locator("#against")).to_contain_text("trained against scale:0.25")


def test_on_a_phone_the_table_scrolls_and_the_page_does_not(phone: Page, sweep: str) -> None:
    phone.goto(sweep)
    expect(phone.locator("table.heat")).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    box = phone.locator(".scroll", has=phone.locator("table.heat"))
    assert box.evaluate("box => box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX !== 'visible'")
