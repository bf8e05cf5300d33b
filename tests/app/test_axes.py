"""Settings in the address: what is written is read, what is not there is said, and every page keeps to one setting."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_study import MARK, SECOND, WIDE, write_small_study
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
def test_what_is_written_into_an_address_is_read_out_of_it(name: str, model: str, other: str, names: list[str]) -> None:
    here, there = Setting(model, "resid_post", "topk", 0, 0), Setting(other, "mlp_out", "pca", 0, 1)
    saes = [sae(0, here), sae(1, there)]
    for setting in (here, there):
        segment = name + axes.written(setting, axes.first(saes))
        assert "/" not in segment.removeprefix(name)
        known = [name, *(one for one in names if one != name and not segment.startswith(f"{one};") and one != segment)]
        found, parameters = axes.split(unquote(quote(segment)), known)
        if setting in axes.settings(saes):
            assert (found, axes.read(parameters, saes, name)) == (name, setting)


def test_a_study_whose_name_has_a_semicolon_is_found() -> None:
    assert axes.split("a;b", ["a", "a;b"]) == ("a;b", [])
    assert axes.split("a;b;sae_seed=1", ["a", "a;b"]) == ("a;b", [("sae_seed", "1")])
    assert axes.split("a;sae_seed=1", ["a", "a;b"]) == ("a", [("sae_seed", "1")])


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


@pytest.mark.parametrize("page", ["", "/latents?layer=0", "/compare", "/plots", "/tensors", "/blind"])
def test_links_of_a_page_keep_its_setting(wide: TestClient, page: str) -> None:
    there = path_to(wide, "pca", f"/s/wide{page}")
    assert there.startswith("/s/wide;sae=pca")
    response = wide.get(there)
    assert response.status_code == 200
    bar = re.search(r'<nav class="setting".*?</nav>', response.text, re.S)
    rest = response.text.replace(bar[0], "")  # type: ignore[index]
    links = re.findall(r'(?:href|action|hx-get)="(/s/[^"]*)"', rest)
    assert links
    assert {link[:14] for link in links} == {"/s/wide;sae=pc"}


def test_a_setting_keeps_the_rest_of_the_address_but_the_latents(wide: TestClient) -> None:
    page = "/s/wide/compare?left=control&layer=1&left_latent=3&right_latent=2&sort=density"
    assert path_to(wide, "mlp_out", page) == "/s/wide;hook=mlp_out/compare?left=control&layer=1&sort=density"
    assert "layer=" not in path_to(wide, SECOND, page)  # that model has no SAE at layer 1
    latent = path_to(wide, "mlp_out", "/s/wide/latent/control/1/3?sort=density")
    assert latent == "/s/wide;hook=mlp_out/latents?sort=density&variant=control&layer=1"
    assert wide.get(latent).status_code == 200


def test_text_is_that_of_the_saes_model(wide: TestClient) -> None:
    other = path_to(wide, SECOND, "/s/wide")
    assert other == "/s/wide;model=org~2Ftoy~20b"
    for page in ("/latents?sort=latent&order=asc", "/latent/control/0/1", "/compare?layer=0"):
        assert MARK not in wide.get(f"/s/wide{page}").text
    rows = wide.get(f"{other}/latents").context["rows"]
    assert all(row["top_text"].endswith(MARK) for row in rows if row["top_text"] is not None)
    latent = wide.get(f"{other}/latent/control/0/1").context
    assert all(match["top_text"].endswith(MARK) for match in latent["matches"])
    shown = [token.text for context in latent["top"] for token in context.tokens]
    assert shown
    assert all(text.endswith(MARK) for text in shown)
    assert all(context.article.endswith(MARK) for context in latent["top"])
    assert all(text.endswith(MARK) for row in latent["effects"] for text, _ in row["tokens"])


def test_matches_are_those_of_the_draw_that_is_shown(wide: TestClient) -> None:
    for draw in (0, 1):
        context = wide.get(f"/s/wide;variant_seed={draw}/latent/trained/0/1").context
        numbers = {sae.sae for sae in context["study"].saes}
        assert context["matches"]
        assert {match["other_sae"] for match in context["matches"]} <= numbers


@pytest.mark.parametrize(
    ("segment", "words"),
    [
        ("wide;colour=red", "There is: model, hook, sae, variant_seed, sae_seed."),
        ("wide;model=other", "There is: toy, org/toy b."),
        ("wide;sae_seed=7", "There is: 0, 1."),
        ("wide;sae_seed", "There is: 0, 1."),
        ("nothing;sae_seed=1", "There is: wide."),
    ],
)
def test_a_setting_that_is_not_there_says_what_is(wide: TestClient, segment: str, words: str) -> None:
    response = wide.get(f"/s/{segment}/plots")
    assert response.status_code == 404
    assert words in response.text


def test_a_study_with_one_setting_has_no_bar(client: TestClient) -> None:
    assert client.get("/s/small").context["bar"] == []
    assert 'class="setting"' not in client.get("/s/small").text


def test_htmx_gets_the_bar_with_the_content(wide: TestClient) -> None:
    text = wide.get("/s/wide/compare?layer=1", headers={"HX-Request": "true"}).text
    assert 'href="/s/wide;hook=mlp_out/compare?layer=1"' in text


def test_the_list_of_studies_counts_all_settings(wide: TestClient) -> None:
    card = wide.get("/").context["cards"][0]
    assert (card.saes, card.layers) == (160, (0, 1, 3))


def test_a_studys_file_may_have_any_name(tmp_path: Path) -> None:
    write_small_study(tmp_path / "a b;c?#=%é.duckdb", layers=(0,), latents=10)
    with TestClient(create_app(Settings(paths=(tmp_path,)))) as opened:
        href = re.search(r'<h2><a href="([^"]*)"', opened.get("/").text)
        response = opened.get(unescape(href[1]))  # type: ignore[index]
        assert response.status_code == 200
        assert opened.get(unescape(re.search(r'href="([^"]*/latents)"', response.text)[1])).status_code == 200  # type: ignore[index]
