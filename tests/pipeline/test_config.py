"""Study files: what is accepted, and how what is not accepted is named."""

from pathlib import Path

import pytest

from pipeline.config import Study, hook_name, load_study
from pipeline.errors import LineupError

STUDIES = Path(__file__).parents[2] / "studies"


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_study_in_the_repository_is_valid_and_named_like_its_file(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_the_demo_writes_out_the_defaults() -> None:
    demo = load_study(STUDIES / "demo.yaml")
    assert demo == Study(name="demo", title=demo.title)


def test_a_name_is_enough(tmp_path: Path) -> None:
    assert load_study(write(tmp_path, "name: mine")) == Study(name="mine")


def test_overrides_reach_into_sections_and_are_read_as_yaml(tmp_path: Path) -> None:
    overrides = ("sae.k=16", "variants=[control]", "model.revision=step0", "corpus.held_out=0.2")
    study = load_study(write(tmp_path, "name: mine\nsae: {k: 8, d_sae: 64}"), overrides)
    assert (study.sae.k, study.sae.d_sae, study.variants) == (16, 64, ("control",))
    assert (study.model.revision, study.corpus.held_out) == ("step0", 0.2)


def test_hook_names_follow_the_layers() -> None:
    assert Study(name="mine", layers=(3, 1)).hook_names == (hook_name(3), hook_name(1))
    assert hook_name(3) == "blocks.3.hook_resid_post"


def test_a_study_cannot_be_changed_after_it_is_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Study(name="mine").seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: mine\nsea: {k: 8}", ["unknown key 'sea'", "known keys", "sae"]),
        ("name: mine\nsae: {K: 8}", ["unknown key 'sae.K'", "d_sae, k"]),
        ("title: no name", ["name", "required"]),
        ("name: Mine!", ["name", "'Mine!'"]),
        ("name: mine\nsae: {k: -1}", ["sae.k", "-1"]),
        ("name: mine\nsae: {k: 64, d_sae: 64}", ["sae.k 64", "smaller than sae.d_sae 64"]),
        ("name: mine\nlayers: [1, 1]", ["layers [1, 1]", "none of them twice"]),
        ("name: mine\nvariants: []", ["variants []", "one or more"]),
        ("name: mine\ncorpus: {context_length: 100}", ["context_length 100", "collect.window 32"]),
        ("name: mine\ncorpus: {drop_positions: 32}", ["drop_positions 32", "collect.window 32"]),
        ("name: mine\ncorpus: {held_out: 1.5}", ["corpus.held_out", "1.5"]),
        ("- a\n- b", ["holds list", "not keys with values"]),
        ("name: [", ["not a YAML file"]),
    ],
)
def test_a_wrong_study_is_refused_by_name_and_value(tmp_path: Path, text: str, says: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(LineupError) as error:
        load_study(path)
    assert all(part in str(error.value) for part in [str(path), *says]), str(error.value)


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LineupError, match=r"nowhere\.yaml"):
        load_study(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("override", "says"), [("sae.k", "key=value"), ("name.k=1", "'name' is not a section")])
def test_a_wrong_override_is_named(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(LineupError, match=says):
        load_study(write(tmp_path, "name: mine"), (override,))
