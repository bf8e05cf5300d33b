"""Laws of the templates, and the small functions that they call."""

import re
from contextlib import suppress
from pathlib import Path
from unicodedata import category
from urllib.parse import quote

import pytest
from jinja2 import StrictUndefined, meta
from small_study import Shape, small_study, write_rows
from starlette.routing import NoMatchFound
from starlette.testclient import TestClient

from app.display import contexts
from app.display.charts import plain
from app.main import create_app
from app.pages import render
from app.pages.report import write_report
from app.settings import Settings
from app.study.axes import address

FOLDER = render.ROOT / "templates"
TEMPLATES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.html"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_parses_and_knows_what_it_includes(name: str) -> None:
    env = render.environment()
    assert env.undefined is StrictUndefined
    tree = env.parse((FOLDER / name).read_text(encoding="utf-8"))
    env.get_template(name)
    for other in meta.find_referenced_templates(tree):
        assert other in TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_url_for_and_asset_exists(client: TestClient, name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    for route in re.findall(r"(?:url_for|study_url)\('([\w-]+)'", text):
        assert _has(client, route), route
    for asset in re.findall(r"asset\('([^']+)'", text):
        assert client.get(f"/static/{asset}").status_code == 200


def _has(client: TestClient, name: str) -> bool:
    """Whether a route of this name can be addressed with some of the parameters that routes here take."""
    values = {"study": "s", "variant": "v", "layer": "1", "latent": "2", "token": "t", "invite": "i"}
    choices: list[tuple[str, ...]] = [(), ("study",), ("token",), ("invite",), ("study", "variant", "layer", "latent")]
    for needed in choices:
        with suppress(NoMatchFound):
            client.app.url_path_for(name, **{key: values[key] for key in needed})
            return True
    return name == "static"


def test_pages_include_the_partial_of_their_name() -> None:
    for page in (FOLDER / "pages").glob("*.html"):
        if page.name != "progress.html":
            assert f'{{% include "partials/{page.name}" %}}' in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (12, "12"), (4608, "4,608"), (150016.0, "150,016"), (0.93456, "0.935"), (-1.5, "−1.500"),
     (0.0, "0.000"), (12.34, "12.3"), (0.00012, "1.2×10⁻⁴"), (float("nan"), "not finite"), (12345.6, "12,346"),
     (1.0, "1.000")],
)  # fmt: skip
def test_numbers_are_written_for_people(value: float | None, text: str) -> None:
    assert render.number(value) == text


def test_invisible_characters_are_made_visible() -> None:
    assert contexts.visible("a\nb\tc") == "a↵b⇥c"
    assert contexts.visible("\u202eabc\x00") == "▯abc▯"
    assert contexts.chip(" the") == "␣the"
    assert contexts.chip("   ") == "␣␣␣"
    assert contexts.chip("") == "∅"


def test_shades_follow_the_activation() -> None:
    assert [contexts.shade(a, 10.0) for a in (0.01, 5.0, 10.0, 12.0)] == [1, 5, 10, 10]
    assert contexts.shade(1.0, 0.0) == 1


def test_plotly_gets_no_markup() -> None:
    assert plain("<a href='javascript:alert(1)'>&") == "&lt;a href='javascript:alert(1)'&gt;&amp;"


def test_links_change_some_parameters_and_drop_others() -> None:
    state = {"sort": "density", "where": ["a>1", "b<2"], "page": 3, "q": "", "state": None}
    assert address("/s/x", state | {"page": None}) == "/s/x?sort=density&where=a%3E1&where=b%3C2"
    assert address("/s/x", dict.fromkeys(state)) == "/s/x"


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_template_spells_a_setting_and_every_form_that_is_a_link_takes_it_along(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    forms = re.findall(r'<form[^>]*method="get".*?</form>', text, re.S)
    assert all("ui.setting(study)" in form for form in forms if 'action="{{ action }}"' in form)
    assert text.count("study=study.name") == len(re.findall("set action = url_for", text)) <= 1
    assert not re.search(r"\b(variant_seed|sae_seed)=", text)


def test_colours_read_on_their_ground() -> None:
    css = (Path(render.STATIC) / "app.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in css.split("@media")[:2])
    for theme in (light, dark):
        for name in [*(f"v{at}" for at in range(8)), "ink", "muted", "accent", "bad", "warn"]:
            for ground in ("page", "raised", "sunk"):
                assert _contrast(theme[name], theme[ground]) >= 4.5, (name, ground, theme[name])


def test_tokens_read_on_the_strongest_shade() -> None:
    css = (Path(render.STATIC) / "app.css").read_text(encoding="utf-8")
    for part in css.split("@media")[:2]:
        theme = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part))
        share = int(re.findall(r"--shade: (\d+)%", part)[0]) / 100
        for name in (f"v{at}" for at in range(8)):
            mixed = _mix(theme[name], theme["page"], share)
            assert _contrast(theme["ink"], mixed) >= 4.5, (name, mixed)


def _mix(one: str, other: str, share: float) -> str:
    parts = ((int(one[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in parts)


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


TURNED = "ab\u202ecd\x00\u2066\u200b\x1b"
"""A title that would turn what comes after it, or hide what it says."""


def test_titles_are_drawn_as_visibly_as_tokens(tmp_path: Path) -> None:
    """Of studies, documents, models and variants, on every page, in figures and in the report."""
    tables = small_study(Shape({f"toy {TURNED}": (0, 1), "other": (0,)}), True, 20, True, 0)
    for name, column in (("study", "title"), ("articles", "title"), ("variants", "label"), ("variants", "description")):
        for row in tables[name]:
            row[column] = f"{row.get('position', '')} {TURNED}"
    tables["provenance"].append({"key": TURNED, "value": TURNED})
    tables["metrics"][0]["label"] = tables["metrics"][-1]["label"] = TURNED
    write_rows(tmp_path / "small.duckdb", tables)
    write_report(tmp_path / "small.duckdb", tmp_path / "small.html")
    found = [(tmp_path / "small.html").read_text(encoding="utf-8")]
    with TestClient(create_app(Settings(paths=(tmp_path,)))) as client:
        pages = ["", "/latents", "/latent/trained/0/1", "/compare", "/plots", "/tensors", "/blind"]
        pages += [f"/latents?q={quote(TURNED)}", f"/plots?metric={quote(TURNED)}"]
        found += [client.get(page).text for page in ("/", *(f"/s/small{page}" for page in pages))]
        assert f'name="q" value="{TURNED}"' in found[-2]  # as it was asked for
    found[-2] = found[-2].replace(f'value="{TURNED}"', "")
    for text in found:
        assert "ab▯cd▯▯▯▯" in text
        assert not [char for char in text if category(char) in ("Cc", "Cf") and char not in "\n\t"]
        assert "u202e" not in text
