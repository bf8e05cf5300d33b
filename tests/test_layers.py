"""The folders show how the data flows: who may import whom, checked on the source and in a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PIPELINE = [
    {"seeds"},
    {"hub"},
    {"config", "hardware", "manifest"},
    {"artefacts", "places", "progress"},
    {"text"},
    {"models"},
    {"llama", "llama_process"},
    {"variants"},
    {"activations"},
    {"saes"},
    {"latents"},
    {"measures"},
    {"autointerp"},
    {"runs"},
    {"builds"},
    {"stages"},
    {"executors"},
    {"database"},
    {"checks"},
    {"prepare", "session"},
    {"study", "plan"},
]
"""Modules and folders of `pipeline` from the first to the last; each imports from earlier lines or its own."""

APP = [{"errors", "settings"}, {"security"}, {"study"}, {"display"}, {"pages"}, {"blind"}, {"main"}]
"""The same of `app`."""


def imported(path: Path, package: str) -> set[str]:
    """Names of the package's modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == package}
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*files("app"), *files("pipeline"), *files("core")], ids=named)
def test_three_floors(path: Path) -> None:
    """`lineup.py` knows both halves, which do not know each other; `core` knows neither."""
    floor = path.relative_to(ROOT).parts[0]
    for other in {"app", "pipeline", "core", "lineup"} - {floor, "core" if floor != "core" else ""}:
        assert imported(path, other) == set()


@pytest.mark.parametrize("path", [*files("app"), *files("pipeline")], ids=named)
def test_imports_go_one_way(path: Path) -> None:
    package, room, *_ = path.relative_to(ROOT).with_suffix("").parts
    order = {"app": APP, "pipeline": PIPELINE}[package]
    if room != "__init__":
        place = {module: number for number, modules in enumerate(order) for module in modules}
        assert {module for module in imported(path, package) if place[module] > place[room]} == set()


@pytest.mark.parametrize("module", ["app.main", "lineup", "pipeline.config"])
def test_a_base_install_is_enough_to_serve(module: str) -> None:
    heavy = ["torch", "pyarrow", "pandas", "scipy", "sae_lens", "transformer_lens", "transformers", "gensim"]
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"


def test_sql_is_written_in_one_place_and_read_in_one() -> None:
    allowed = {
        "pipeline/database.py",
        "app/study/queries.py",
        "app/study/files.py",
        "app/blind/labelfile.py",
        "app/blind/old_labels.py",
        "app/blind/export.py",
    }
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "app").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if str(path.relative_to(ROOT)) not in allowed:
            assert not any(word in text for word in ("SELECT ", "INSERT INTO", "UPDATE latents")), path
