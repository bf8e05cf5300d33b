"""Trials of a disk that is full at one moment or another of a study, which then goes on when there is room.

`python -m tests.pipeline.full_disk` tries some three hundred sizes, on file systems of its own that nobody else sees:
by itself as root, otherwise where users may have namespaces. `test_full_disk.py` tries a few.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lineup import main as lineup
from tests.pipeline.damage import asking, small_study
from tests.pipeline.llm_server import running
from tests.pipeline.studies_for_tests import ROOT, differing

ENOUGH = 64 * 2**20
"""Bytes for the whole study, several times over."""
UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
"""Runs a command that may mount what others do not see."""
ADVICE = "What is finished is kept: make room, then run the same command again|Make room, or choose another folder"
SENTENCE = re.compile(rf"lineup: Cannot write .*\. ({ADVICE}).*\.")


def possible() -> bool:
    """Whether a file system can be mounted here."""
    mount = [*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def in_own_mounts(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the trials, as a process of its own."""
    command = [*UNSHARE, sys.executable, "-m", "tests.pipeline.full_disk", "--inside", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


@contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes, as long as the context lasts."""
    place.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def run(study: Path, runs: Path) -> tuple[int, str]:
    """`lineup run` in this process: its status, and what it said on the terminal."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = lineup(["run", str(study), "--runs", str(runs)])
    return status, said.getvalue()


def wrong(status: int, said: str, runs: Path) -> str:
    """What is not as it should be when a disk was full; nothing if all is well."""
    lines = [line for line in said.splitlines() if line.startswith("lineup: ")]
    if status != 2 or len(lines) != 1 or not SENTENCE.fullmatch(lines[0]):
        return f"status {status}, said: {said[-400:]}"
    left = [str(path.relative_to(runs)) for path in runs.rglob("*") if _is_half(path)]
    if left:
        return f"left behind: {left}"
    progress = runs / "toy" / "progress.json"
    if progress.exists() and json.loads(progress.read_text(encoding="utf-8"))["state"] != "failed":
        return "progress does not say that it failed"
    return ""


def _is_half(path: Path) -> bool:
    """Whether a file is of no use to the next run. Activations that were noted are."""
    ends = path.name.endswith((".partial", ".wal", ".tmp", ".joined"))
    return ends and not (path.is_dir() and path.name.startswith("activations-"))


def trial(study: Path, undisturbed: Path, place: Path, size: int) -> str:
    """A study on a disk of one size, and again when that has grown: what is wrong, or `fits`, or nothing."""
    with disk(place, size):
        status, said = run(study, place / "runs")
        found = "fits" if status == 0 else wrong(status, said, place / "runs")
        if found:
            return found
        return _finish(study, undisturbed, place)


def grow(study: Path, undisturbed: Path, place: Path, size: int, step: int) -> tuple[int, str]:
    """A study on a disk that grows whenever it is full: how often it was, and what was wrong."""
    with disk(place, size):
        for count in range(ENOUGH // step):
            status, said = run(study, place / "runs")
            if status == 0:
                return count, _finish(study, undisturbed, place)
            if found := wrong(status, said, place / "runs"):
                return count, found
            size += step
            _mount("-o", f"remount,size={size}", str(place))
    return -1, "never ended"


def _finish(study: Path, undisturbed: Path, place: Path) -> str:
    _mount("-o", f"remount,size={ENOUGH}", str(place))
    status, said = run(study, place / "runs")
    if status:
        return f"with room: status {status}, said: {said[-400:]}"
    other = differing(undisturbed, place / "runs" / "toy.duckdb")
    return f"other content in {', '.join(other)}" if other else ""


def tried(sizes: Sequence[int], steps: Sequence[int]) -> dict[str, object]:
    """All sizes, and growth in all steps, both in KiB: how many were full, how many fit, and what was wrong."""
    full, fits, problems = 0, 0, []
    with tempfile.TemporaryDirectory() as name, running() as server:
        folder = Path(name)
        study = small_study(folder, **asking(server))
        status, said = run(study, folder / "undisturbed")
        assert status == 0, said
        undisturbed, place = folder / "undisturbed" / "toy.duckdb", folder / "disk"
        for size in sizes:
            found = trial(study, undisturbed, place, size * 1024)
            full, fits = full + (found != "fits"), fits + (found == "fits")
            problems += [f"{size} KiB: {found}"] if found not in ("", "fits") else []
        for step in steps:
            count, found = grow(study, undisturbed, place, 4096, step * 1024)
            full += count
            problems += [f"growing by {step} KiB, for the {count + 1}th time: {found}"] if found else []
    return {"full": full, "fits": fits, "problems": problems}


SIZES = [*range(4, 64, 4), *range(64, 1000, 32), *range(1000, 24_000, 500)]
STEPS = [96]


def main() -> None:
    """The trials, with their counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inside", action="store_true", help="in mounts of one's own")
    parser.add_argument("--sizes", type=json.loads, default=SIZES)
    parser.add_argument("--steps", type=json.loads, default=STEPS)
    options = parser.parse_args()
    if not options.inside:
        os.execvp(UNSHARE[0], [*UNSHARE, sys.executable, "-m", "tests.pipeline.full_disk", "--inside", *sys.argv[1:]])
    sys.stdout.write(json.dumps(tried(options.sizes, options.steps), indent=1) + "\n")


if __name__ == "__main__":
    main()
