"""A blind experiment belongs to a setting of a study: its latents are from there, and links lead back there."""

import re
from html import unescape
from pathlib import Path

import duckdb
import pytest
from blind_client import Rater, invitation, own_link, serving
from starlette.testclient import TestClient

from app.blind.design import read_design, standard
from app.blind.evidence import identity, prepare
from tests.app.small_study import SECOND, Shape, write_small_study

SHAPE = Shape({"toy": (1,), SECOND: (1,)}, variants=("trained", "control"))
SETTING = "?model=org%2Ftoy+b"
PLACE = f"small{SETTING}"
OLD = "small;variant_seed=0;model=org~2Ftoy~20b"
"""As addresses were once, and designs in label files are."""
FORM = {"title": "t", "layers": ["1"], "variants": ["control"], "form": "single", "trials": "10", "practice": "2",
        "repeats": "0.1", "gold": "0.1", "contexts": "5"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("blind")
    write_small_study(made / "small.duckdb", latents=120, top_contexts=8, shape=SHAPE)
    return made


def test_an_experiment_draws_from_its_setting_and_leads_back_there(folder: Path) -> None:
    organiser = serving(folder)
    assert f'action="/s/small/blind{SETTING}"' in organiser.get(f"/s/small/blind{SETTING}").text
    page = organiser.post(f"/s/small/blind{SETTING}", data=FORM)
    store = organiser.app.state.labels.store  # type: ignore[attr-defined]
    experiment = store.experiment_by_organiser(own_link(page.text).rsplit("/", 1)[1])
    assert experiment.design.study == PLACE
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
    assert all(link.startswith("/s/small/latent/") and link.endswith(SETTING) for link in links)
    assert organiser.get(links[0]).status_code == 200

    found = organiser.get(own_link(page.text))
    assert found.context["labels"]["density"] == "density"
    assert f"the study “small” (model {SECOND}, hook resid_post, sae topk" in found.context["method"]


def test_windows_of_another_model_do_not_count(folder: Path, tmp_path: Path) -> None:
    # Two of the eight strongest windows are the same, so no latent has eight different ones of its own model.
    with serving(folder, labels=tmp_path / "labels.sqlite") as client:
        refused = client.post(f"/s/small/blind{SETTING}", data=FORM | {"contexts": "8"})
    assert refused.status_code == 400
    assert "found 0" in re.search(r"role=\"alert\">(.*?)</p>", refused.text)[1]  # type: ignore[index]


def test_programs_set_up_at_a_setting_too(folder: Path, tmp_path: Path) -> None:
    with serving(folder, labels=tmp_path / "labels.sqlite") as client:
        body = {"title": "t", "form": "single", "trials": 10, "contexts": 5}
        for asked in (PLACE, OLD):
            made = client.post("/api/blind/experiments", json=body | {"study": asked})
            assert made.status_code == 201
            store = client.app.state.labels.store  # type: ignore[attr-defined]
            token = made.json()["organiser"].rsplit("/", 1)[1]
            assert store.experiment_by_organiser(token).design.study == PLACE
        for asked in (
            "small?model=none",
            "small;model=none",
            "small?self=1",
            "small;colour=red",
            "none?model=toy",
            "?",
        ):
            refused = client.post("/api/blind/experiments", json=body | {"study": asked})
            assert refused.status_code == 404


def test_an_experiment_whose_design_has_a_setting_of_old_still_leads_there(folder: Path, tmp_path: Path) -> None:
    organiser = serving(folder, labels=tmp_path / "labels.sqlite")
    with organiser:
        store = organiser.app.state.labels.store  # type: ignore[attr-defined]
        with organiser.app.state.studies.open("small", model=SECOND) as study:  # type: ignore[attr-defined]
            values = standard(study) | {"study": OLD, "trials": 10, "practice": 0, "contexts": 5, "min_gold": None}
            design = read_design(values | {"repeats": 0, "gold": 0})
            experiment, token = store.create_experiment(design, identity(study), prepare(study, design))
        assert store.experiment_by_organiser(token).design.study == OLD
        assert organiser.get(f"/blind/o/{token}").context["labels"]["density"] == "density"
        rater = Rater(TestClient(organiser.app, follow_redirects=True)).join(f"/blind/join/{experiment.invite}")
        while not rater.finished:
            rater.answer(6)
        links = re.findall(r'href="(/s/[^"]*/latent/[^"]*)"', rater.page)
        assert len(links) == 5
        assert all(link.startswith("/s/small/latent/") for link in links)
        shown = rater.client.get(unescape(links[0])).context
        assert shown["study"].setting.model == SECOND
