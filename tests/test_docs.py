"""The documents tell the truth about commands, settings and files."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from app.settings import Settings
from lineup import LISTS, commands

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_readme_with_its_default_and_no_other_is() -> None:
    rows = dict(re.findall(r"^\| `(LINEUP_\w+)` \| (.*?) \|", README, re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        value = str(field.default[0]) if isinstance(field.default, tuple) else str(field.default or "")
        expected[f"LINEUP_{name.upper()}"] = f"`{value}`" if value else "none"
    assert {name: default.strip() for name, default in rows.items()} == expected


def test_every_command_is_in_the_readme() -> None:
    shown = {name for name, command in commands.commands.items() if not command.hidden}
    assert shown == set(re.findall(r"^\| `lineup (\w+)", README, re.MULTILINE))
    assert "show " + r"\|".join(["architectures", "variants", "metrics", "scorers", "protocols"]) in README
    assert set(LISTS) == {"architectures", "variants", "metrics", "scorers", "protocols"}


@pytest.mark.parametrize(
    "path",
    sorted(path for floor in ("core", "pipeline", "app") for path in (ROOT / floor).rglob("*.py")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_file_is_on_the_map_at_its_place(path: Path) -> None:
    """In its floor's table: by name in the folder's row, or as a file of the floor itself."""
    floor, *rooms, file = path.relative_to(ROOT).parts
    table = CONTRIBUTING.partition(f"**`{floor}/`**")[2].partition("\n**")[0]
    row = next(line for line in table.splitlines() if line.startswith(f"| `{rooms[0]}/`")) if rooms else table
    assert f"`{path.stem if rooms else file}`" in row or file == "__init__.py"


@pytest.mark.parametrize("document", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_links_and_named_files_exist(document: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", document):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:app|core|pipeline|tests|templates|studies)/[\w./]+)`", document):
        assert (ROOT / name).exists(), name


def versions(name: str) -> dict[str, str]:
    """Package names and versions of a file of requirements; hashes and markers left out."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^([\w.\-]+)==([\w.]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


@pytest.mark.parametrize(("lock", "extras"), [("serve", []), ("pipeline", ["pipeline"])])
def test_what_the_images_install_is_what_the_project_asks_for(lock: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    locked, measured = versions(f"container/{lock}.txt"), versions("constraints.txt")
    for requirement in map(Requirement, asked):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        version = (locked | versions("container/torch.txt"))[name]
        assert requirement.specifier.contains(version), f"{requirement}, locked {version}: run `make lock`"
    assert {name: version for name, version in locked.items() if measured.get(name, version) != version} == {}


def test_the_services_of_the_compose_file_are_stages_and_commands_that_there_are() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    stages = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {service["build"]["target"] for service in compose["services"].values()} <= set(stages)
    name, *arguments = compose["services"]["study"]["command"]
    commands.commands[name].make_context(name, arguments)
    assert all(service["read_only"] for service in compose["services"].values())


def test_the_readme_leads_with_the_two_commands() -> None:
    before = README.split("##")[0]
    assert "\nmake demo" in before
    assert "\nmake test" in before


def test_every_module_says_what_it_is_for() -> None:
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "app").rglob("*.py")]:
        assert path.read_text(encoding="utf-8").startswith('"""'), path
