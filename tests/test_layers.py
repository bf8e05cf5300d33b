"""The folders show how the data flows: who may import whom, checked on the source and in a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = [
    {"errors", "seeds"},
    {"disk", "hub"},
    {"config", "hardware", "manifest", "store", "rater"},
    {"artefacts", "places", "progress", "study_file"},
    {"text"},
    {"models"},
    {"llama", "llama_process"},
    {"variants"},
    {"activations"},
    {"saes"},
    {"latents"},
    {"measures"},
    {"autointerp"},
    {"stages"},
    {"sae_stages"},
    {"publish"},
    {"checks"},
    {"study", "plan"},
    {"__main__"},
]
"""Modules and folders of `pipeline` from the first to the last; each imports from earlier lines or its own."""


def imported(path: Path, package: str) -> set[str]:
    """Names of the package's modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(package + ".")}
    return found


def place(module: str) -> int:
    return next(number for number, modules in enumerate(ORDER) if module in modules)


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_pipeline_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    if relative == "__init__":
        return
    later = {module for module in imported(path, "pipeline") if place(module) > place(relative)}
    assert later == set()


@pytest.mark.parametrize("path", sorted((ROOT / "app").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_dashboard_never_imports_the_pipeline(path: Path) -> None:
    assert imported(path, "pipeline") == set()


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_imports_the_dashboard(path: Path) -> None:
    """And `tell`, which takes its statistics from there: there is one definition of an AUROC."""
    assert imported(path, "app") == ({"agreement"} if path.name == "tell.py" else set()) or path.name == "__main__.py"


@pytest.mark.parametrize("module", ["app.main", "pipeline.__main__", "pipeline.study_file"])
def test_a_base_install_is_enough_to_serve(module: str) -> None:
    heavy = ["torch", "pyarrow", "pandas", "scipy", "sae_lens", "transformer_lens", "transformers", "gensim"]
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"


def test_sql_is_written_in_one_place_and_read_in_one() -> None:
    allowed = {
        "pipeline/store.py",
        "app/queries.py",
        "app/aggregates.py",
        "app/db.py",
        "app/blind/tables.py",
        "app/blind/export.py",
    }
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "app").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if str(path.relative_to(ROOT)) not in allowed:
            assert not any(word in text for word in ("SELECT ", "INSERT INTO", "UPDATE latents")), path
