"""What only a real browser can show: keys, history, charts, width, and that hostile text stays text."""

import json
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect
from small_study import SCRIPT, write_small_study

VIEWS = ["", "/latents", "/latent/trained/1/0", "/latent/trained/1/9", "/compare", "/plots", "/tensors"]
EVERYTHING = ["/", *(f"/s/small{view}" for view in VIEWS)]


def left(page: Page) -> str:
    return page.locator(".side.left h2 a").inner_text()


def right(page: Page) -> str:
    return page.locator(".side.right h2 a").inner_text()


def press(page: Page, key: str) -> None:
    """Press a key that leads to another address, and wait until the page is there."""
    before = page.url
    page.keyboard.press(key)
    page.wait_for_url(lambda url: url != before)
    expect(page.locator(".htmx-request, .htmx-swapping, .htmx-settling")).to_have_count(0)


def test_from_the_overview_to_a_pair_and_back_by_keyboard(page: Page, address: str) -> None:
    page.goto(f"{address}/")
    page.keyboard.press("j")
    expect(page.locator("[data-row]").first).to_be_focused()
    press(page, "Enter")
    expect(page.locator("h1")).to_have_text("A small study")
    press(page, "c")
    first = (left(page), right(page))
    press(page, "2")
    assert "layer=1" in page.url
    press(page, "j")
    expect(page.locator(".side.left .where")).to_contain_text("2 of 46 by detection AUROC")
    expect(page.locator(".side.right .where")).to_contain_text("2 of 46 by detection AUROC")
    second = (left(page), right(page))
    assert second != first
    press(page, "J")
    assert left(page) == second[0]
    expect(page.locator(".side.right .where")).to_contain_text("3 of 46")
    press(page, "m")
    matched = page.locator(".side.left .match").inner_text()
    assert f"{right(page)}," in matched
    press(page, "s")
    assert left(page) in matched
    press(page, "k")
    press(page, "o")
    expect(page.locator("h1")).to_have_text("A small study")


def test_the_back_button_shows_the_pair_before_with_its_charts(page: Page, address: str) -> None:
    page.goto(f"{address}/s/small/compare?layer=1")
    seen = [(page.url, left(page), right(page))]
    for _ in range(2):
        press(page, "j")
        seen.append((page.url, left(page), right(page)))
    page.go_back()
    page.wait_for_url(seen[1][0])
    expect(page.locator(".side.left h2 a")).to_have_text(seen[1][1])
    expect(page.locator(".chart .main-svg").first).to_be_visible()
    page.reload()
    assert (left(page), right(page)) == seen[1][1:]
    press(page, "j")
    assert (left(page), right(page)) == seen[2][1:]


def test_keys_pressed_faster_than_pages_come_are_not_lost(page: Page, address: str) -> None:
    page.goto(f"{address}/s/small/compare?layer=1")
    for _ in range(4):
        page.keyboard.press("j")
    expect(page.locator(".side.left .where")).to_contain_text("5 of 46")


def test_the_active_tokens_of_a_context_say_their_activation_to_the_keyboard(page: Page, address: str) -> None:
    page.goto(f"{address}/s/small/compare?layer=1")
    page.locator(".side.left .context").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_have_text(re.compile(r"^[\d.]+$"))
    expect(page.locator("#announce")).to_have_text(re.compile(r"[\d.]+$"))
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()


def test_a_metrics_definition_shows_on_focus_and_on_hover(page: Page, address: str) -> None:
    page.goto(f"{address}/s/small")
    page.locator(".term").first.hover()
    expect(page.locator("#tip")).to_contain_text("Does the window activate it?")
    page.mouse.move(0, 0)
    page.locator(".actions .button").last.focus()
    page.keyboard.press("Tab")
    expect(page.locator("#tip")).to_contain_text("Does the window activate it?")


def test_help_lists_the_keys_of_the_page(page: Page, address: str) -> None:
    page.goto(f"{address}/s/small/compare")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    for words in ("Next pair", "Swap the sides", "Layer 3", "Go to a latent by its number"):
        expect(page.locator("#help-keys")).to_contain_text(words)
    page.keyboard.press("j")
    assert "left_latent" not in page.url
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_a_list_is_sorted_searched_and_walked(page: Page, address: str) -> None:
    page.goto(f"{address}/s/small/latents?layer=1")
    page.get_by_role("link", name="density", exact=True).click()
    page.wait_for_url("**sort=density**")
    page.keyboard.press("/")
    page.keyboard.type("script")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=script**")
    expect(page.locator(".list tbody tr").first).to_be_visible()
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    press(page, "Enter")
    expect(page.locator("h1")).to_contain_text("Latent")
    page.go_back()
    page.wait_for_url("**q=script**")
    expect(page.locator("input[name=q]")).to_have_value("script")


def test_keys_typed_while_a_page_is_on_its_way_are_for_that_page(page: Page, address: str) -> None:
    held: list[Route] = []
    page.goto(f"{address}/s/small/latents?layer=1")
    page.route("**/latents?*sort=density*", lambda route: route.continue_() if held else held.append(route))
    page.get_by_role("link", name="density", exact=True).click(no_wait_after=True)
    page.wait_for_function("() => document.querySelector('.htmx-request')")
    page.keyboard.press("/")
    page.keyboard.type("script")
    page.keyboard.press("Enter")
    held[0].continue_()
    page.wait_for_url("**q=script**")
    expect(page.locator("input[name=q]")).to_have_value("script")


def test_a_number_leads_to_its_latent(page: Page, address: str) -> None:
    page.goto(f"{address}/s/small/compare?layer=1")
    other = right(page)
    page.keyboard.press("/")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    page.wait_for_url("**left_latent=7**")
    expect(page.locator(".side.left h2 a")).to_have_text("#7")
    assert right(page) == other


@pytest.mark.parametrize("path", EVERYTHING)
def test_no_page_is_wider_than_a_phone(phone: Page, address: str, path: str) -> None:
    phone.goto(address + path)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert "window.hacked=1" not in phone.locator("script").all_inner_texts()


@pytest.mark.parametrize("path", ["/s/small/compare?layer=1", "/s/small/plots", "/s/small/latent/trained/1/0"])
def test_charts_are_drawn_in_the_variants_colour(page: Page, address: str, path: str) -> None:
    page.goto(address + path)
    charts, drawn = page.locator(".chart"), page.locator(".chart .main-svg")
    expect(drawn.first).to_be_visible()
    assert charts.count() > 0
    assert page.locator(".chart:not(:has(.main-svg))").count() == 0
    colour = "document.querySelector('.chart').data[0]"
    used = page.evaluate(f"JSON.stringify({colour})")
    assert "#0068a8" in used
    assert "var(--" not in used


def test_hostile_text_is_shown_as_text(page: Page, address: str) -> None:
    page.goto(f"{address}/s/small/latent/trained/1/2")
    expect(page.locator("aside .explanation").first).to_have_text(SCRIPT)
    page.goto(f"{address}/s/small/latents?layer=1&q=cmd")
    expect(page.locator(".list .explanation")).to_contain_text("=cmd()")


def test_pages_work_without_scripts(browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/s/small/compare?layer=1")
    page.locator("[data-key=j]").click()
    expect(page.locator(".side.left .where")).to_contain_text("2 of 46")
    page.goto(f"{address}/s/small/latents")
    page.locator("input[name=q]").fill("cmd")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator(".list tbody tr")).to_have_count(1)
    context.close()


def test_a_study_without_a_file_moves_on_by_itself(page: Page, address: str, runs: Path) -> None:
    report = {"state": "running", "updated": time.time() + 1e6, "label": f"reading {SCRIPT}", "finished_saes": 0}
    (runs / "new").mkdir()
    (runs / "new" / "progress.json").write_text(json.dumps(report))
    page.goto(f"{address}/s/new")
    expect(page.locator("main")).to_contain_text("being built")
    write_small_study(runs / "new.duckdb", layers=(0,), complete=False, latents=10)
    expect(page.locator("h1")).to_have_text("A small study", timeout=15_000)
    write_small_study(runs / "new.duckdb", layers=(0, 1), latents=10)
    expect(page.locator(".lede")).to_contain_text("6 SAEs", timeout=15_000)
    with page.expect_response(lambda response: "/progress" in response.url) as polled:
        pass
    assert "hx-trigger" not in polled.value.headers
