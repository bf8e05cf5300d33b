"""Study files: what is accepted, and how what is not accepted is named."""

import re
from pathlib import Path

import pytest

from core.errors import UserError
from pipeline.config import ModelConfig, SaeConfig, Study, hook_name, layers_of, load_study
from tests.pipeline.study_numbers import NUMBERS, override

STUDIES = Path(__file__).parents[2] / "studies"


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_study_in_the_repository_is_valid_and_named_like_its_file(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_the_demo_writes_out_the_defaults_and_scores_by_four_protocols() -> None:
    demo = load_study(STUDIES / "demo.yaml")
    pools = {"explain_from": ["quantiles", "strongest"], "score_on": ["quantiles", "strongest"]}
    assert demo == Study(name="demo", title=demo.title, autointerp=pools)


def test_a_name_is_enough(tmp_path: Path) -> None:
    assert load_study(write(tmp_path, "name: mine")) == Study(name="mine")


def test_overrides_reach_into_sections_and_are_read_as_yaml(tmp_path: Path) -> None:
    overrides = ("sae.k=16", "variants=[control]", "model.revision=step0", "corpus.held_out=0.2")
    study = load_study(write(tmp_path, "name: mine\nsae: {k: 8, d_sae: 64}"), overrides)
    assert (study.saes[0].k, study.saes[0].d_sae, study.variants) == (16, 64, ("control",))
    assert (study.models[0].revision, study.corpus.held_out) == ("step0", 0.2)


def test_hook_points_have_transformerlens_names() -> None:
    assert hook_name(3) == "blocks.3.hook_resid_post"
    assert hook_name(0, "mlp_out") == "blocks.0.hook_mlp_out"


def test_one_model_and_one_sae_are_short_for_lists(tmp_path: Path) -> None:
    short = load_study(write(tmp_path, "name: mine\nmodel: hub:a/b\nsae: {k: 8}"))
    long = load_study(write(tmp_path, "name: mine\nmodels: [{source: 'hub:a/b'}]\nsaes: [{k: 8}]"))
    assert short == long == Study(name="mine", models=(ModelConfig(source="hub:a/b"),), saes=(SaeConfig(k=8),))


def test_a_sweep_is_one_line(tmp_path: Path) -> None:
    text = "name: mine\nvariants: [trained, {scale: [0.5, 1.0, 2, 0.12345678]}, {distribution: uniform}, control]"
    names = ("trained", "scale:0.5", "scale:1", "scale:2", "scale:0.12345678", "distribution:uniform", "control")
    assert load_study(write(tmp_path, text)).variants == names


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("scale:1.0", "scale:1"),
        ("scale:1e0", "scale:1"),
        ("scale:.50", "scale:0.5"),
        ("scale:1.0e+30", "scale:1e30"),
        ("scale: 2", "scale:2"),
        ("layers_from:03", "layers_from:3"),
        ("scale:nan", "scale:nan"),
        ("scale:1e999", "scale:1e999"),
        ("init:own", "init:own"),
        ("trained", "trained"),
    ],
)
def test_a_variant_has_one_spelling(written: str, name: str) -> None:
    assert Study(name="mine", variants=(written,)).variants == (name,)


@pytest.mark.parametrize(
    ("asked", "own", "expected"),
    [
        ("[1, 3]", None, (1, 3)),
        ("all", None, (0, 1, 2, 3, 4, 5)),
        ("every 2", None, (1, 3, 5)),
        ("every 4", None, (3,)),
        ("[1, 3]", "all", (0, 1, 2, 3, 4, 5)),
        ("all", "[5]", (5,)),
    ],
)
def test_layers_are_listed_or_follow_the_models_depth(
    tmp_path: Path, asked: str, own: str | None, expected: tuple[int, ...]
) -> None:
    model = f"{{source: 'folder:x', layers: {own}}}" if own else "folder:x"
    study = load_study(write(tmp_path, f"name: mine\nlayers: {asked}\nmodel: {model}"))
    assert layers_of(study, study.models[0], 6) == expected


def test_the_number_of_latents_and_the_step_size_follow_the_width() -> None:
    assert SaeConfig().latents(576) == 4608
    assert SaeConfig(d_sae=100).latents(576) == 100
    assert SaeConfig(expansion=64, learning_rate="auto").peak_learning_rate(256) == pytest.approx(2e-4)
    assert SaeConfig(expansion=64, learning_rate="auto").peak_learning_rate(1024) == pytest.approx(1e-4)
    assert SaeConfig(learning_rate=1e-3).peak_learning_rate(1024) == 1e-3


def test_a_study_cannot_be_changed_after_it_is_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Study(name="mine").seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: mine\nsea: {k: 8}", ["unknown key 'sea'", "known keys", "sae"]),
        ("name: mine\nsae: {K: 8}", ["unknown key 'sae.K'", "k, options"]),
        ("name: mine\nmodel: {sorce: x}", ["unknown key 'model.sorce'", "source, revision"]),
        ("name: mine\nmodels: [{sorce: x}]", ["unknown key 'models.0.sorce'", "source, revision"]),
        ("name: mine\nsae: {}\nsaes: [{}]", ["sae and saes", "keep one of them"]),
        ("name: mine\nsaes: [{k: 8}, {k: 16}]", ["saes ['topk', 'topk']", "none of them twice"]),
        ("name: mine\nmodels: [hub:a/b, hub:a/b]", ["hub:a/b", "none of them twice"]),
        ("name: mine\nlayers: every 0", ["layers", "every N", "'every 0'"]),
        ("name: mine\nprecision: half", ["precision", "'auto', 'float32' or 'bfloat16'", "'half'"]),
        ("name: mine\nhooks: [mlp]", ["hooks.0", "mlp_out", "'mlp'"]),
        ("name: mine\nsae: {architecture: pretrained}", ["sae.source", "pretrained"]),
        ("name: mine\nsae: {architecture: top}", ["sae.architecture", "topk", "'top'"]),
        ("title: no name", ["name", "required"]),
        ("name: Mine!", ["name", "'Mine!'"]),
        ("name: mine\nsae: {k: -1}", ["sae.k", "-1"]),
        ("name: mine\nsae: {k: 64, d_sae: 64}", ["sae.k 64", "smaller than sae.d_sae 64"]),
        ("name: mine\nlayers: [1, 1]", ["layers [1, 1]", "none of them twice"]),
        ("name: mine\nvariants: []", ["variants []", "one or more"]),
        ("name: mine\nvariants: ['scale:1', 'scale:1.0']", ["'scale:1', 'scale:1'", "none of them twice"]),
        ("name: mine\nvariants: [{scale: [1, 1.0]}]", ["'scale:1', 'scale:1'", "none of them twice"]),
        ("name: mine\nlayers: every 99999", ["layers", "every N", "'every 99999'"]),
        ("name: mine\nlayers: [12345678]", ["layers", "every N", "[12345678]"]),
        ("name: mine\nseed: 9223372036854775808", ["seed", "less than 9223372036854775808"]),
        ("name: mine\nseed: 0x" + "f" * 5000, ["seed", "less than 9223372036854775808", "very many digits"]),
        ("name: mine\nseed: " + "9" * 4000, ["seed", "less than 9223372036854775808", "9999…"]),
        ("name: mine\nsae: {options: &a {b: *a}}", ["sae.options", "Recursion"]),
        ("name: mine\nsae: {options: {a: 0x" + "f" * 5000 + "}}", ["sae.options", "very many digits"]),
        ("name: mine\ncorpus: {context_length: 100}", ["context_length 100", "collect.window 32"]),
        ("name: mine\ncorpus: {drop_positions: 32}", ["drop_positions 32", "collect.window 32"]),
        ("name: mine\ncorpus: {held_out: 1.5}", ["corpus.held_out", "1.5"]),
        (
            "name: mine\ncorpus: {context_length: 1, drop_positions: 0, prepend_bos: true}\ncollect: {window: 1}",
            ["corpus.context_length 1 must be at least two above corpus.drop_positions 0"],
        ),
        (
            "name: mine\ncorpus: {context_length: 4, drop_positions: 3}\ncollect: {window: 4}",
            ["corpus.context_length 4 must be at least two above corpus.drop_positions 3"],
        ),
        ("- a\n- b", ["holds list", "not keys with values"]),
        ("name: [", ["not a YAML file"]),
        ("name: mine\nseed: " + "9" * 5000, ["not a YAML file", "Exceeds the limit"]),
        ("name: mine\ntitle: 2024-13-45", ["not a YAML file", "month must be in 1..12"]),
        ("name: mine\ntitle: !!timestamp x", ["not a YAML file"]),
        ("name: mine\ntitle: " + "[" * 1500, ["not a YAML file", "recursion"]),
        ('name: mine\ntitle: "\\ud800"', ["'\\ud800' is half of a character"]),
        ('name: mine\nsae: {options: {a: ["\\ud800"]}}', ["'\\ud800' is half of a character"]),
    ],
)
def test_a_wrong_study_is_refused_by_name_and_value(tmp_path: Path, text: str, says: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_study(path)
    assert all(part in str(error.value) for part in [str(path), *says]), str(error.value)


def test_every_number_of_a_study_is_found() -> None:
    assert len(NUMBERS) > 40
    assert {"seed", "layers[]", "saes[].learning_rate", "autointerp.llm.max_cost", "corpus.held_out"} <= NUMBERS.keys()


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_limits(key: str) -> None:
    """A new key too; the database's columns for whole numbers have 32 bits, but for two."""
    bounds = {name.lower().removeprefix("exclusive"): value for name, value in NUMBERS[key].items() if "imum" in name}
    assert set(bounds) == {"minimum", "maximum"}
    assert NUMBERS[key]["type"] == "number" or bounds["maximum"] <= 2**31 or key in ("seed", "corpus.training_tokens")


BEYOND = (f"-{'9' * 20}", "9" * 20, "1e400", ".inf", "-.inf", ".nan", "0x" + "f" * 5000)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_beyond_its_limits_is_one_sentence(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, "name: mine")
    for value in BEYOND:
        change = override(key, value)
        with pytest.raises(UserError, match=re.escape(change.partition("=")[0])):
            load_study(path, (change,))


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load_study(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("override", "says"), [("sae.k", "key=value"), ("name.k=1", "'name' is not a section")])
def test_a_wrong_override_is_named(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_study(write(tmp_path, "name: mine"), (override,))
