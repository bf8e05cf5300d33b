"""A blind experiment belongs to a setting of a study: its latents are from there, and links lead back there."""

import re
from pathlib import Path

import duckdb
import pytest
from blind_client import Rater, invitation, own_link, serving
from starlette.testclient import TestClient

from tests.app.small_study import SECOND, Shape, write_small_study

SHAPE = Shape({"toy": (1,), SECOND: (1,)}, variants=("trained", "control"))
SEGMENT = "small;model=org~2Ftoy~20b"
FORM = {"title": "t", "layers": ["1"], "variants": ["control"], "form": "single", "trials": "10", "practice": "2",
        "repeats": "0.1", "gold": "0.1", "contexts": "5"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("blind")
    write_small_study(made / "small.duckdb", latents=120, top_contexts=8, shape=SHAPE)
    return made


def test_an_experiment_draws_from_its_setting_and_leads_back_there(folder: Path) -> None:
    organiser = serving(folder)
    assert f'action="/s/{SEGMENT}/blind"' in organiser.get(f"/s/{SEGMENT}/blind").text
    page = organiser.post(f"/s/{SEGMENT}/blind", data=FORM)
    store = organiser.app.state.labels.store  # type: ignore[attr-defined]
    experiment = store.experiment_by_organiser(own_link(page.text).rsplit("/", 1)[1])
    assert experiment.design.study == SEGMENT
    assert experiment.study["name"] == "small"
    assert experiment.study["setting"]["model"] == SECOND
    with duckdb.connect(str(folder / "small.duckdb"), read_only=True) as connection:
        there = connection.execute("SELECT sae, sha256 FROM saes WHERE model = ? ORDER BY sae", [SECOND]).fetchall()
    assert sorted(experiment.study["saes"].values()) == sorted(sha for _, sha in there)
    assert {item.sae for item in store.items(experiment.experiment)} == {sae for sae, _ in there}

    rater = Rater(TestClient(organiser.app, follow_redirects=True)).join(invitation(page.text))
    while not rater.finished:
        assert "model=" not in rater.page
        rater.answer(6)
    links = re.findall(r'href="(/s/[^"]*/latent/[^"]*)"', rater.page)
    assert links
    assert all(link.startswith(f"/s/{SEGMENT}/latent/") for link in links)
    assert organiser.get(links[0]).status_code == 200

    found = organiser.get(own_link(page.text))
    assert found.context["labels"]["density"] == "density"
    assert f"the study “small” (model {SECOND}, hook resid_post, sae topk" in found.context["method"]


def test_windows_of_another_model_do_not_count(folder: Path, tmp_path: Path) -> None:
    # Two of the eight strongest windows are the same, so no latent has eight different ones of its own model.
    with serving(folder, labels=tmp_path / "labels.duckdb") as client:
        refused = client.post(f"/s/{SEGMENT}/blind", data=FORM | {"contexts": "8"})
    assert refused.status_code == 400
    assert "found 0" in re.search(r"role=\"alert\">(.*?)</p>", refused.text)[1]  # type: ignore[index]


def test_programs_set_up_at_a_setting_too(folder: Path, tmp_path: Path) -> None:
    with serving(folder, labels=tmp_path / "labels.duckdb") as client:
        body = {"title": "t", "form": "single", "trials": 10, "contexts": 5}
        asked = "small;variant_seed=0;model=org~2Ftoy~20b"
        made = client.post("/api/blind/experiments", json=body | {"study": asked})
        assert made.status_code == 201
        store = client.app.state.labels.store  # type: ignore[attr-defined]
        token = made.json()["organiser"].rsplit("/", 1)[1]
        assert store.experiment_by_organiser(token).design.study == SEGMENT
        refused = client.post("/api/blind/experiments", json=body | {"study": "small;model=none"})
        assert refused.status_code == 404
