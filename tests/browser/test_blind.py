"""Blind labelling in a real browser: an organiser sets an experiment up, raters label by keyboard and on a phone."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.app.blind_client import blind_study
from tests.live_server import running


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard over a study that is large enough for experiments."""
    with running(blind_study(tmp_path_factory.mktemp("blind"))) as address:
        yield address


def set_up(page: Page, address: str, **fields: str) -> str:
    """Fill the form in and send it; gives the raters' link."""
    page.goto(f"{address}/s/small/blind")
    page.locator("summary").click()
    for name, value in (
        {"trials": "10", "contexts": "5", "practice": "2", "gold": "0", "repeats": "0"} | fields
    ).items():
        page.locator(f"[name={name}]").fill(value)
    page.get_by_role("button", name="Set it up").click()
    page.wait_for_url("**/blind/o/**")
    return page.locator(".links input").first.input_value()


def seen(page: Page) -> str:
    """The name of the trial on the screen, after the moment in which keys are still taken for the one before."""
    page.locator("[data-trial]").wait_for()
    page.wait_for_timeout(260)
    return page.locator(".answers [name=trial]").input_value()


def answer(page: Page, key: str) -> None:
    """Press a key, or touch the fifth button where none is given, and wait for what comes next."""
    before = seen(page)
    page.keyboard.press(key) if key else page.locator(".scale button").nth(4).click()
    page.wait_for_function(
        "before => document.querySelector('.answers:not(.told) [name=trial]')?.value !== before", arg=before
    )
    if page.locator(".told").count():
        page.keyboard.press("n")
        page.locator(".told").wait_for(state="detached")


def test_from_the_form_to_ones_own_result_by_keyboard(page: Page, blind: str) -> None:
    link = set_up(page, blind, min_seconds="0", min_gold="0")
    organiser = page.url
    page.keyboard.press("l")
    page.get_by_role("button", name="Begin").click()
    page.wait_for_url("**/blind/rate")
    expect(page.locator(".trial-head")).to_contain_text("Practice 1 of 2")
    seen(page)
    page.keyboard.press("6")
    expect(page.locator(".told")).to_contain_text("transformer.")
    page.keyboard.press("n")
    answer(page, "1")
    for number in range(10):
        expect(page.locator(".trial-head")).to_contain_text(f"{number + 1} of 10")
        answer(page, "5")
    expect(page.locator("h1")).to_have_text("Thank you. That was all.")
    expect(page.locator(".headline")).to_contain_text("Right in 50%")
    expect(page.locator(".missed tbody tr")).to_have_count(5)
    page.locator(".missed a").first.click()
    expect(page.locator("h1")).to_contain_text("Latent")
    page.goto(link)
    page.get_by_role("button", name="Begin a practice session").click()
    expect(page.locator(".trial .badge")).to_have_text("The whole session is practice: it is not counted.")
    page.get_by_role("button", name="leave").click()
    page.locator("#leave").get_by_role("button", name="Leave").click()
    expect(page.locator("h1")).to_have_text("Thank you. You left early.")
    page.goto(organiser)
    expect(page.locator(".headline")).to_contain_text("50%")
    page.get_by_role("button", name="Close the experiment").first.click()
    page.locator("#close").get_by_role("button", name="Close the experiment").click()
    expect(page.locator(".badge")).to_contain_text("results are final")
    expect(page.locator(".chart .main-svg").first).to_be_visible()
    expect(page.locator("#h-result + .headline + p")).to_contain_text("Exact test")


def test_keys_are_for_the_trial_that_is_seen_and_time_is_kept(page: Page, blind: str) -> None:
    page.goto(set_up(page, blind, practice="0"))
    page.get_by_role("button", name="Begin").click()
    first = seen(page)
    held: list[Route] = []
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.post_data or "") if request.method == "POST" else None)
    page.route("**/blind/label", lambda route: route.continue_() if held else held.append(route))
    page.keyboard.press("2")
    page.wait_for_function("() => document.querySelector('.htmx-request')")
    page.keyboard.type("666")
    held[0].continue_()
    page.wait_for_function("before => document.querySelector('.answers [name=trial]').value !== before", arg=first)
    page.keyboard.press("6")  # sooner than anybody can have read it
    page.wait_for_timeout(300)
    expect(page.locator(".trial-head")).to_contain_text("2 of 10")
    assert len(sent) == 1
    seconds, hidden = (float(re.search(rf"\b{name}=([\d.]+)", sent[0])[1]) for name in ("seconds", "hidden_seconds"))  # type: ignore[index]
    assert 0.2 <= seconds < 30
    assert hidden == 0


def test_the_form_says_at_once_when_the_rule_about_gold_cannot_apply(page: Page, blind: str) -> None:
    page.goto(f"{blind}/s/small/blind")
    needed = page.locator("#needed")
    expect(needed).not_to_contain_text("gold")
    page.locator("summary").click()
    page.locator("[name=gold]").fill("0.02")
    page.locator("[name=gold]").press("Tab")
    expect(needed).to_contain_text("it needs 3 of them, and a rater has 1")
    page.locator("[name=min_gold]").fill("")
    page.locator("[name=min_gold]").press("Tab")
    expect(needed).not_to_contain_text("gold")


def test_undo_skip_and_coming_back(page: Page, blind: str) -> None:
    page.goto(set_up(page, blind, practice="0"))
    page.get_by_role("button", name="Begin").click()
    first = seen(page)
    answer(page, "1")
    seen(page)
    page.keyboard.press("u")
    page.wait_for_function("first => document.querySelector('.answers [name=trial]')?.value === first", arg=first)
    answer(page, "6")
    seen(page)
    page.keyboard.press("s")
    page.get_by_role("button", name="other").click()
    expect(page.locator(".trial-head")).to_contain_text("3 of 10")
    third = seen(page)
    page.goto("about:blank")
    page.goto(f"{blind}/blind/rate")
    assert seen(page) == third


def test_a_second_tab_does_no_harm(page: Page, blind: str) -> None:
    page.goto(set_up(page, blind, practice="0"))
    page.get_by_role("button", name="Begin").click()
    seen(page)
    other = page.context.new_page()
    other.goto(f"{blind}/blind/rate")
    answer(page, "4")
    answer(page, "4")
    seen(other)
    other.keyboard.press("1")
    expect(other.locator(".trial-head")).to_contain_text("3 of 10")
    other.close()


def test_a_phone_labels_by_touch(phone: Page, browser: Browser, blind: str) -> None:
    desk = browser.new_page()
    link = set_up(desk, blind, practice="1")
    desk.close()
    phone.goto(link)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.get_by_role("button", name="Begin").click()
    for _ in range(11):
        seen(phone)
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        answer(phone, "")
    expect(phone.locator(".headline")).to_contain_text("Right in 50%")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_it_works_without_scripts(browser: Browser, page: Page, blind: str) -> None:
    link = set_up(page, blind, practice="1")
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(link)
    plain.get_by_role("button", name="Begin").click()
    plain.locator(".scale button").first.click()
    plain.get_by_role("button", name="Go on").click()
    plain.locator(".scale button").first.click()
    expect(plain.locator(".trial-head")).to_contain_text("2 of 10")
    context.close()


def test_a_rater_finds_the_browser_of_latents_closed(page: Page, blind: str) -> None:
    page.goto(set_up(page, blind))
    page.get_by_role("button", name="Begin").click()
    page.wait_for_url("**/blind/rate")
    refused = page.request.get(f"{blind}/s/small/compare")
    assert refused.status == 403
    assert "Closed while you label" in refused.text()
