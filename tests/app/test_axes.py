"""Settings in the address: what is said is read, what is not there is named, and every page keeps to one setting."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_study import MARK, SECOND, WIDE, Shape, write_small_study
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.study import axes
from app.study.axes import AXES, Setting
from app.study.records import Sae

TEXT = st.text(min_size=1, max_size=20)


def sae(number: int, setting: Setting, variant: str = "trained", layer: int = 0) -> Sae:
    """An SAE of which nothing matters but where it stands."""
    zero = dict.fromkeys(Sae.__dataclass_fields__, 0)
    own = {axis.field: axis.of(setting) for axis in AXES}
    return Sae(**zero | own | {"sae": number, "variant": variant, "layer": layer})  # type: ignore[arg-type]


@given(name=TEXT, model=TEXT, other=TEXT, names=st.lists(TEXT))
def test_what_an_address_says_is_read_out_of_it(name: str, model: str, other: str, names: list[str]) -> None:
    here, there = Setting(model, "resid_post", "topk", 0, 0), Setting(other, "mlp_out", "pca", 0, 1)
    saes = [sae(0, here), sae(1, there)]
    for setting in axes.settings(saes):
        full = axes.address(name, axes.parameters(setting, axes.first(saes)))
        known = [name, *(one for one in names if not full.startswith(one))]
        found, asked = axes.split(full, known)
        assert (found, axes.read(asked, saes, name)) == (name, setting)


@pytest.mark.parametrize(
    ("text", "name", "asked"),
    [
        ("a", "a", {}),
        ("a?sae_seed=1", "a", {"sae_seed": "1"}),
        ("a?model=org%2Ftoy+b&sae_seed=1", "a", {"model": "org/toy b", "sae_seed": "1"}),
        ("a;model=org~2Ftoy~20b;sae_seed=1", "a", {"model": "org/toy b", "sae_seed": "1"}),
        ("a;b", "a;b", {}),
        ("a;b?sae_seed=1", "a;b", {"sae_seed": "1"}),
        ("a;b;sae_seed=1", "a;b", {"sae_seed": "1"}),
        ("a~2Fb;sae_seed=1", "a~2Fb", {"sae_seed": "1"}),
        ("gone;sae_seed=1", "gone", {"sae_seed": "1"}),
        ("a;=1;model", "a", {"": "1", "model": ""}),
    ],
)
def test_a_full_name_is_a_study_and_a_setting(text: str, name: str, asked: dict[str, str]) -> None:
    assert axes.split(text, ["a", "a;b", "a~2Fb"]) == (name, asked)


def test_a_variant_that_was_drawn_once_stands_beside_every_draw_of_the_others() -> None:
    first, second = (Setting("m", "h", "n", draw, 0) for draw in (0, 1))
    saes = [sae(0, first), sae(1, first, "random"), sae(2, second, "random"), sae(3, first, "random", layer=1)]
    assert axes.settings(saes) == [first, second]
    assert [one.sae for one in axes.members(saes, first)] == [0, 1, 3]
    assert [one.sae for one in axes.members(saes, second)] == [0, 2, 3]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A study with two of everything."""
    folder = tmp_path_factory.mktemp("wide")
    write_small_study(folder / "wide.duckdb", latents=12, shape=WIDE, top_contexts=4)
    with TestClient(create_app(Settings(paths=(folder,)))) as opened:
        yield opened


def path_to(client: TestClient, text: str, page: str) -> str:
    """Where the bar of a page leads under a text; the first axis that has it."""
    bar = re.search(r'<nav class="setting".*?</nav>', client.get(page).text, re.S)
    assert bar is not None
    return unescape(re.search(rf'<a href="([^"]*)"[^>]*>{re.escape(text)}</a>', bar[0])[1])  # type: ignore[index]


def test_the_bare_name_shows_the_first_of_everything(wide: TestClient) -> None:
    study = wide.get("/s/wide").context["study"]
    assert study.setting == Setting("toy", "resid_post", "topk", 0, 0)
    assert (study.name, study.layers) == ("wide", [0, 1])
    assert len(study.saes) == 6
    assert len(study.all_saes) == 160


def test_the_bar_leads_to_every_setting_and_each_has_its_own_numbers(wide: TestClient) -> None:
    seen: dict[str, Setting] = {}
    numbers, waiting = set[tuple[int, ...]](), ["/s/wide/blind"]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            context = wide.get(path).context
            seen[path] = context["study"].setting
            numbers.add(tuple(sae.sae for sae in context["study"].saes))
            waiting += [option.href for choice in context["bar"] for option in choice.options]
    assert len(seen) == len(set(seen.values())) == len(numbers) == 32
    assert {len(saes) for saes in numbers} == {6}


@pytest.mark.parametrize(
    "page", ["", "/latents?layer=0", "/compare", "/plots", "/tensors", "/blind", "/protocols", "/latent/control/0/1"]
)
def test_links_of_a_page_keep_its_setting(wide: TestClient, page: str) -> None:
    there = path_to(wide, "pca", f"/s/wide{page}")
    assert there.partition("?")[2].split("&")[0] == "sae=pca"
    response = wide.get(there)
    assert response.status_code == 200
    bar = re.search(r'<nav class="setting".*?</nav>', response.text, re.S)
    rest = response.text.replace(bar[0], "")  # type: ignore[index]
    for form in re.findall(r'<form[^>]* method="get"[^>]*action="/s/.*?</form>', rest, re.S):
        assert '<input type="hidden" name="sae" value="pca">' in form
        rest = rest.replace(form, "")
    links = [unescape(link) for link in re.findall(r'(?:href|action|hx-get)="(/s/[^"]*)"', rest)]
    assert len(links) > 5
    assert [link for link in links if "sae=pca" not in re.split("[?&]", link)] == []


def test_a_setting_keeps_the_rest_of_the_address_but_the_latents(wide: TestClient) -> None:
    page = "/s/wide/compare?left=control&layer=1&left_latent=3&right_latent=2&sort=density"
    assert path_to(wide, "mlp_out", page) == "/s/wide/compare?hook=mlp_out&left=control&layer=1&sort=density"
    assert "layer=" not in path_to(wide, SECOND, page)  # that model has no SAE at layer 1
    latent = path_to(wide, "mlp_out", "/s/wide/latent/control/1/3?sort=density")
    assert latent == "/s/wide/latents?hook=mlp_out&sort=density&variant=control&layer=1"
    assert wide.get(latent).status_code == 200


def test_text_is_that_of_the_saes_model(wide: TestClient) -> None:
    other, there = path_to(wide, SECOND, "/s/wide"), "?model=org%2Ftoy+b"
    assert other == f"/s/wide{there}"
    for page in ("/latents?sort=latent&order=asc", "/latent/control/0/1", "/compare?layer=0"):
        assert MARK not in wide.get(f"/s/wide{page}").text
    rows = wide.get(f"/s/wide/latents{there}").context["rows"]
    assert all(row["top_text"].endswith(MARK) for row in rows if row["top_text"] is not None)
    latent = wide.get(f"/s/wide/latent/control/0/1{there}").context
    assert all(match["top_text"].endswith(MARK) for match in latent["matches"])
    shown = [token.text for context in latent["top"] for token in context.tokens]
    assert shown
    assert all(text.endswith(MARK) for text in shown)
    assert all(context.article.endswith(MARK) for context in latent["top"])
    assert all(text.endswith(MARK) for row in latent["effects"] for text, _ in row["tokens"])


def test_matches_are_those_of_the_draw_that_is_shown(wide: TestClient) -> None:
    for draw in (0, 1):
        context = wide.get(f"/s/wide/latent/trained/0/1?variant_seed={draw}").context
        numbers = {sae.sae for sae in context["study"].saes}
        assert context["matches"]
        assert {match["other_sae"] for match in context["matches"]} <= numbers


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("model=other", "There is: toy, org/toy b."),
        ("sae_seed=7", "There is: 0, 1."),
        ("sae_seed=01", "There is: 0, 1."),
        ("sae_seed=0&sae_seed=x", "no sae_seed “x”"),
        ("model=%00%ff%F0%9F", "There is: toy, org/toy b."),
    ],
)
def test_a_setting_that_is_not_there_says_what_is(wide: TestClient, query: str, words: str) -> None:
    for page in ("", "/plots", "/latents", "/compare", "/tensors", "/protocols", "/blind", "/latent/control/0/1"):
        response = wide.get(f"/s/wide{page}?{query}")
        assert response.status_code == 404
        assert words in response.text
        assert 'href="/s/wide"' in response.text


def test_a_parameter_that_is_empty_counts_as_absent(wide: TestClient) -> None:
    assert wide.get("/s/wide?model=&sae_seed=").context["study"].parameters == {}


def test_an_sae_that_is_not_there_leads_to_the_overview_of_its_setting(wide: TestClient) -> None:
    response = wide.get("/s/wide/latent/control/7/1?sae=pca")
    assert response.status_code == 404
    assert 'href="/s/wide?sae=pca"' in response.text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/s/wide;sae=pca", "/s/wide?sae=pca"),
        ("/s/wide;sae=pca/", "/s/wide;sae=pca"),  # Starlette's own: without the last slash
        (
            "/s/wide;model=org~2Ftoy~20b;sae_seed=1/latents?layer=3",
            "/s/wide/latents?model=org%2Ftoy+b&sae_seed=1&layer=3",
        ),
        ("/s/wide;sae=pca/latents?where=a>1&where=b<2", "/s/wide/latents?sae=pca&where=a%3E1&where=b%3C2"),
        ("/s/wide;sae=pca/latent/a%3Fb/0/1", "/s/wide/latent/a%3Fb/0/1?sae=pca"),
        ("/s/wide%3Bsae=pca/progress?seen=3", "/s/wide/progress?sae=pca&seen=3"),
        ("/s/wide;sae_seed=9", "/s/wide?sae_seed=9"),
        ("/s/wide;", "/s/wide"),
    ],
)
def test_an_address_of_old_leads_to_the_new_one(wide: TestClient, old: str, new: str) -> None:
    response = wide.get(old, follow_redirects=False)
    assert (response.status_code // 100, response.headers["Location"].removeprefix("http://testserver")) == (3, new)


@pytest.mark.parametrize(
    "segment",
    [
        "wide;colour=red", "nothing;sae_seed=1", ";sae_seed=1", "wide;model=~", "wide;model=~FF~00", "wide;sae_seed",
        "wide;sae_seed=-1", "wide;=", "wide;model=" + "a" * 3000, "wide;model=~0d~0aX: y", "wide;model=%0d%0aA: b",
        "wide;model=toy;model=../..", "wide;model=~2F~2Fevil.example", "wide;;;", "wide;model=%F0%9F", "wide;" * 500,
    ],
)  # fmt: skip
@pytest.mark.parametrize("page", ["", "/plots", "/progress", "/latent/control/0/1", "/blind"])
def test_hostile_addresses_of_old_lead_nowhere_else(wide: TestClient, segment: str, page: str) -> None:
    first = wide.get(f"/s/{segment}{page}", follow_redirects=False)
    assert first.headers.get("Location", "/s/wide").startswith("/s/wide")
    assert not {"a", "x"} & set(first.headers)
    assert wide.get(f"/s/{segment}{page}").status_code in (200, 404)
    assert wide.post(f"/s/{segment}{page}").status_code in (404, 405, 422)


def test_a_study_with_one_setting_has_no_bar(client: TestClient) -> None:
    assert client.get("/s/small").context["bar"] == []
    assert 'class="setting"' not in client.get("/s/small").text


def test_htmx_gets_the_bar_with_the_content(wide: TestClient) -> None:
    text = wide.get("/s/wide/compare?layer=1", headers={"HX-Request": "true"}).text
    assert 'href="/s/wide/compare?hook=mlp_out&amp;layer=1"' in text


def test_the_list_of_studies_counts_all_settings(wide: TestClient) -> None:
    card = wide.get("/").context["cards"][0]
    assert (card.saes, card.layers) == (160, (0, 1, 3))


@pytest.mark.parametrize("name", ["a b;c?#=%é", "a;sae_seed=1", "a~2Fb", "a?sae_seed=1&b"])
def test_a_studys_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    shape = Shape({"toy": (0,)}, saes=("topk", "pca"))
    write_small_study(tmp_path / f"{name}.duckdb", latents=10, shape=shape)
    write_small_study(tmp_path / "a.duckdb", latents=10, layers=(0,))
    with TestClient(create_app(Settings(paths=(tmp_path,)))) as opened:
        hrefs = [unescape(href) for href in re.findall(r'<h2><a href="([^"]*)"', opened.get("/").text)]
        found = [opened.get(href, follow_redirects=False) for href in hrefs]
        assert {response.context["study"].name for response in found} == {name, "a"}
        response = next(response for response in found if response.context["study"].name == name)
        pca = next(o.href for choice in response.context["bar"] for o in choice.options if o.text == "pca")
        page = opened.get(pca)
        latents = opened.get(unescape(re.search(r'href="([^"]*/latents[^"]*)"', page.text)[1]))  # type: ignore[index]
        assert (latents.status_code, latents.context["study"].setting.name) == (200, "pca")
        assert opened.get(pca).context["study"].full_name == f"{name}?sae=pca"
