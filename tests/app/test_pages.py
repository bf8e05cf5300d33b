"""What the pages say of a complete study."""

import json
import re
from pathlib import Path

import duckdb
import pytest
from small_study import FORMULA, SCRIPT, write_small_study
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings

PAGES = [
    "/",
    "/s/small",
    "/s/small/latents",
    "/s/small/latent/trained/1/0",
    "/s/small/latent/trained/1/9",
    "/s/small/compare",
    "/s/small/compare?show=quantile&scale=own&pair=match",
    "/s/small/plots",
    "/s/small/tensors",
    "/nothing-here",
    f"/s/small/latents?q={SCRIPT}",
    f"/s/{SCRIPT.replace('/', '')}",
    f"/s/small/latents?sort={SCRIPT}",
]
HTMX = {"HX-Request": "true"}


@pytest.mark.parametrize("url", PAGES)
def test_no_page_lets_the_corpus_in_as_markup_or_needs_inline_code(client: TestClient, url: str) -> None:
    response = client.get(url)
    assert "<script>window" not in response.text
    assert "<b onmouseover" not in response.text
    assert not re.search(r"<[^>]*\s(style|on[a-z]+)=", response.text.replace(FORMULA, ""))
    assert not re.findall(r"<script(?![^>]*\ssrc=)", response.text)
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "HX-Request" in response.headers["Vary"]


@pytest.mark.parametrize("url", [url for url in PAGES if "<" not in url and url != "/nothing-here"])
def test_htmx_gets_the_partial_that_the_page_includes(client: TestClient, url: str) -> None:
    whole, part = client.get(url), client.get(url, headers=HTMX)
    assert whole.template.name.startswith("pages/")
    assert part.template.name == whole.template.name.replace("pages/", "partials/")
    assert "<html" not in part.text
    assert part.text.strip() in whole.text


def test_the_browsers_history_gets_whole_pages(client: TestClient) -> None:
    response = client.get("/s/small/latents", headers=HTMX | {"HX-History-Restore-Request": "true"})
    assert response.template.name == "pages/latents.html"


def test_list_shows_variants_layers_and_title(client: TestClient) -> None:
    card = client.get("/").context["cards"][0]
    assert (card.title, card.saes, card.layers) == ("A small study", 9, (0, 1, 3))
    assert [variant.colour for variant in card.variants] == ["v0", "v1", "v2"]


def test_overview_puts_variants_beside_each_other_and_explains_what_is_missing(client: TestClient) -> None:
    response = client.get("/s/small")
    recovered = next(t for t in response.context["tables"] if t.metric.metric == "ce_loss_recovered")
    assert recovered.lines[0].layer == 0
    cells = recovered.lines[0].cells
    assert [cell.value is None for cell in cells] == [False, True, True]
    assert cells[1].note.startswith("CE with zeros")
    scores = next(t for t in response.context["scores"] if t.metric.metric == "detection_auroc")
    trained, _, control = scores.lines[0].cells
    assert trained.value > control.value
    assert trained.low < trained.value < trained.high
    assert trained.share == pytest.approx(46 / 60)


def test_latents_are_sorted_filtered_and_searched(client: TestClient) -> None:
    rows = client.get("/s/small/latents?sort=density&order=asc&where=density>0.001&where=density<=0.1").context["rows"]
    densities = [row["density"] for row in rows]
    assert densities == sorted(densities)
    assert densities
    assert all(0.001 < density <= 0.1 for density in densities)
    found = client.get("/s/small/latents", params={"q": "=CMD()"}).context
    assert [row["latent"] for row in found["rows"]] == [1]
    assert client.get("/s/small/latents?state=dead").context["total"] == 6


def test_latents_without_a_score_come_last_in_either_direction(client: TestClient) -> None:
    for order in ("asc", "desc"):
        context = client.get(f"/s/small/latents?sort=detection_auroc&order={order}").context
        known = [row["detection_auroc"] is not None for row in context["rows"]]
        assert known == sorted(known, reverse=True)


def test_the_filter_form_becomes_part_of_the_address(client: TestClient) -> None:
    response = client.get("/s/small/latents?metric=density&op=>=&value=0.01&where=density<0.5", headers=HTMX)
    pushed = response.headers["HX-Push-Url"]
    assert "where=density%3C0.5&where=density%3E%3D0.01" in pushed
    assert "value=" not in pushed
    assert len(client.get(pushed).context["rows"]) == response.context["total"]


def test_pages_of_latents_do_not_overlap(client: TestClient) -> None:
    pages = [client.get(f"/s/small/latents?page={page}").context["rows"] for page in (1, 2)]
    assert [len(page) for page in pages] == [50, 10]
    assert len({row["latent"] for page in pages for row in page}) == 60
    assert "past the last" in client.get("/s/small/latents?page=3").text


def test_a_latent_folds_identical_contexts_and_shows_every_kind(client: TestClient) -> None:
    response = client.get("/s/small/latent/trained/1/0")
    context = response.context
    assert max(c.times for c in context["top"]) == 2
    assert sum(c.times for c in context["top"]) == 6
    assert [group["stratum"] for group in context["strata"]] == [2, 1, 0]
    assert all(token.level == 0 for c in context["silent"] for token in c.tokens)
    assert "×2" in response.text
    assert {match["variant"] for match in context["matches"]} == {"rerandomized_incl_embeddings", "control"}


def test_a_dead_latent_says_so_and_has_no_numbers(client: TestClient) -> None:
    response = client.get("/s/small/latent/trained/1/9")
    assert "Dead: never active" in response.text
    assert response.context["figure"] is None
    assert response.context["place"]["rank"] is None


@pytest.mark.parametrize(
    ("latent", "words"),
    [
        (3, "Silent in too few contexts to score it"),
        (8, "Too few activating contexts to score"),
        (13, "The explainer failed: the endpoint answered 500 five times"),
    ],
)
def test_a_latent_without_a_score_says_why(client: TestClient, latent: int, words: str) -> None:
    text = client.get(f"/s/small/latent/trained/1/{latent}").text
    assert words in text[text.index('class="state"') :][:300]


def test_walking_the_pairs_visits_every_scored_latent_once(client: TestClient) -> None:
    url, seen = "/s/small/compare?layer=1&left=trained&right=control", []
    while url:
        context = client.get(url).context
        seen.append((context["left"].number, context["right"].number))
        assert context["left"].place["rank"] == len(seen)
        url = context["moves"]["next"]
    assert len(seen) == context["left"].place["total"] == 46
    assert len({left for left, _ in seen}) == len({right for _, right in seen}) == 46
    assert client.get(context["moves"]["previous"]).context["left"].number == seen[-2][0]


def test_one_side_moves_alone(client: TestClient) -> None:
    start = client.get("/s/small/compare?layer=1").context
    right = client.get(start["moves"]["right_next"]).context
    assert right["left"].number == start["left"].number
    assert right["right"].place["rank"] == 2
    left = client.get(start["moves"]["left_next"]).context
    assert left["left"].place["rank"] == 2
    assert left["right"].number == start["right"].number


def test_the_best_match_comes_to_the_right_and_follows(client: TestClient) -> None:
    start = client.get("/s/small/compare?layer=1&left_latent=0").context
    matched = client.get(start["moves"]["match"]).context
    assert matched["right"].number == start["left"].match["other_latent"]
    following = client.get("/s/small/compare?layer=1&left_latent=0&pair=match").context
    assert following["right"].number == matched["right"].number
    after = client.get(following["moves"]["next"]).context
    assert after["right"].number == after["left"].match["other_latent"]


def test_a_latent_without_a_match_says_so(client: TestClient) -> None:
    response = client.get("/s/small/compare?layer=1&left_latent=4&pair=match")
    assert "No match of #4 was recorded" in response.text


def test_swapping_twice_comes_back(client: TestClient) -> None:
    start = client.get("/s/small/compare?layer=1&left_latent=5&right_latent=7").context
    swapped = client.get(start["moves"]["swap"]).context
    assert (swapped["left"].number, swapped["right"].number) == (7, 5)
    back = client.get(swapped["moves"]["swap"]).context
    assert (back["left"].sae, back["left"].number) == (start["left"].sae, 5)


def test_both_sides_share_axes_and_by_default_the_colour_scale(client: TestClient) -> None:
    url = "/s/small/compare?layer=1&left_latent=5&right_latent=7"
    context = client.get(url).context
    left, right = context["left"], context["right"]
    for axis in ("xaxis", "yaxis"):
        assert left.figure["layout"][axis]["range"] == right.figure["layout"][axis]["range"]
    weaker, stronger = sorted((left, right), key=lambda side: side.view.largest)
    expected = max(1, round(10 * weaker.view.largest / stronger.view.largest))
    assert max(t.level for c in weaker.contexts for t in c.tokens) == expected < 10
    own = client.get(f"{url}&scale=own").context
    assert {max(t.level for c in own[s].contexts for t in c.tokens) for s in ("left", "right")} == {10}


def test_the_plot_of_what_a_statistic_can_tell_shows_the_rows_of_the_overview(client: TestClient) -> None:
    for name in ("detection_auroc", "token_entropy"):
        figure = client.get(f"/s/small/plots?metric={name}").context["tells"]
        told = {
            variant.label: {layer: rows[True]["auroc"] for layer, rows in telling.layers.items()}
            for variant, found in client.get("/s/small").context["tells"]
            for telling in found
            if telling.name == name
        }
        assert {trace["name"]: dict(zip(trace["x"], trace["y"], strict=True)) for trace in figure["data"]} == told
        assert figure["layout"]["shapes"][0]["y0"] == 0.5


def test_plots_share_axes_between_layers_and_count_what_they_leave_out(client: TestClient) -> None:
    context = client.get("/s/small/plots?metric=detection_auroc").context
    ranges = {json.dumps(d["figure"]["layout"]["xaxis"]["range"]) for d in context["distributions"]}
    assert len(ranges) == 1
    assert [count[1:] for count in context["distributions"][0]["counts"]] == [(46, 60)] * 3
    assert [figure is None for metric, figure in context["over_layers"] if metric.metric == "fvu"] == [False]


def test_a_log_statistic_is_binned_by_its_logarithm(client: TestClient) -> None:
    figure = client.get("/s/small/plots?metric=density").context["distributions"][0]["figure"]
    x = figure["data"][0]["x"]
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert x[1] / x[0] == pytest.approx(x[-1] / x[-2])
    assert sum(figure["data"][0]["customdata"]) == 54


def test_front_end_libraries_come_from_installed_packages(client: TestClient) -> None:
    for name in ("htmx.min.js", "plotly.min.js", "app.css", "app.js", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/readyz").json() == {"status": "ok", "studies": 1}


def test_overview_says_which_numbers_can_tell_training(client: TestClient) -> None:
    page = client.get("/s/small")
    tells = page.context["tells"]
    assert [variant.variant for variant, _ in tells] == ["rerandomized_incl_embeddings", "control"]
    _, tellings = tells[1]
    assert tellings[0].metric is None  # all together come first
    assert [t.distance for t in tellings[1:]] == sorted((t.distance for t in tellings[1:]), reverse=True)
    scores = next(t for t in tellings if t.metric and t.metric.metric == "detection_auroc")
    # small_study draws the control's scores around .64 and the trained ones' around .90
    assert all(layer[True]["auroc"] > 0.8 and layer[False]["auroc"] > 0.8 for layer in scores.layers.values())
    density = next(t for t in tellings if t.metric and t.metric.metric == "density")
    assert all(abs(layer[True]["auroc"] - 0.5) < 0.2 for layer in density.layers.values())
    assert "Can this number tell?" in page.text


def test_a_study_file_of_an_older_version_says_what_to_do(tmp_path: Path) -> None:
    write_small_study(tmp_path / "old.duckdb", layers=(0,), latents=20)
    with duckdb.connect(str(tmp_path / "old.duckdb")) as connection:
        connection.execute("DROP TABLE tells")
    with TestClient(create_app(Settings(paths=(tmp_path,)))) as opened:
        page = opened.get("/s/old")
        assert opened.get("/").status_code == 200
    assert page.status_code == 503
    assert "from an older version" in page.text
    assert "Run the study again" in page.text
