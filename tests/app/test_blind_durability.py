"""What was acknowledged is in the file, once, whenever the server is killed and whatever the disk does."""

import json
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from small_experiment import design, prepared, sessions

from app.blind.store import LabelStore

ROOT = Path(__file__).parents[2]
RATERS = 100
LABELS = 50
"""Trials of a rater."""
KILLS = 5
CHECKPOINTS = (2**12, 2**18, 2**24)
"""Bytes of the log at which it is written into the file: at nearly every answer, now and then, never."""


class Server:
    """A server that can be killed, at a moment that nobody chooses."""

    def __init__(self, path: Path, checkpoint_bytes: int) -> None:
        command = [sys.executable, str(Path(__file__).parent / "label_server.py"), str(path), str(checkpoint_bytes)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, *request: Any) -> None:
        """Ask for something; a dead server hears nothing."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def replies(self, kill_after: int, milliseconds: float) -> Iterator[list[Any]]:
        """Whole lines until it is dead, some milliseconds after as many lines; the first says what the file had."""
        assert self._process.stdout is not None
        alarm = threading.Timer(milliseconds / 1000, self._process.kill)
        for number, line in enumerate(self._process.stdout):
            if number == kill_after:
                alarm.start()
            if line.endswith("\n"):
                yield json.loads(line)
        alarm.cancel()

    def kill(self) -> None:
        """SIGKILL: no time for anything."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@contextmanager
def server(path: Path, checkpoint_bytes: int) -> Iterator[Server]:
    started = Server(path, checkpoint_bytes)
    try:
        yield started
    finally:
        started.kill()


class Raters:
    """Raters who send an answer again, as it was, until it is acknowledged, and only then the next one."""

    def __init__(self, trials: dict[str, list[str]], rng: random.Random) -> None:
        self.plan = {trial: rng.randint(1, 6) for own in trials.values() for trial in own}
        self.acknowledged: dict[str, int] = {}
        self._left = {session: list(reversed(own)) for session, own in trials.items()}

    @property
    def waiting(self) -> dict[str, str]:
        """By session, the trial whose answer is not acknowledged yet."""
        return {session: own[-1] for session, own in self._left.items() if own}

    def ask(self, to: Server, session: str) -> None:
        """Send an answer, if there is one left to send."""
        if self._left[session]:
            trial = self._left[session][-1]
            to.send("label", session, trial, 1, self.plan[trial])

    def hear(self, session: str, trial: str, revision: int, answer: int) -> None:
        """Take an acknowledgement, which must be of what was asked."""
        assert (self._left[session].pop(), 1, self.plan[trial]) == (trial, revision, answer)
        self.acknowledged[trial] = answer

    def compare(self, rows: list[list[Any]]) -> None:
        """The file has what was acknowledged, perhaps some of what was under way, and each once."""
        found = {trial: answer for trial, _, answer in rows}
        assert len(found) == len(rows)
        assert self.acknowledged.items() <= found.items() <= self.plan.items()
        assert found.keys() - self.acknowledged.keys() <= set(self.waiting.values())


def test_a_hundred_raters_lose_nothing_and_gain_nothing_when_the_server_is_killed(tmp_path: Path) -> None:
    path, rng = tmp_path / "labels.sqlite", random.Random()
    experiment, trials = _joined(path)
    raters, kills = Raters(trials, rng), 0
    while raters.waiting:
        last = kills == KILLS
        after = RATERS * LABELS if last else rng.randint(1, RATERS * LABELS // KILLS)
        with server(path, CHECKPOINTS[-1] if last else rng.choice(CHECKPOINTS)) as child:
            for session in raters.waiting:
                raters.ask(child, session)
            for kind, *values in child.replies(after, rng.uniform(0, 30)):
                if kind == "file":
                    raters.compare(values[0])
                    continue
                assert kind == "label", values
                raters.hear(*values)
                raters.ask(child, values[0])
                if not raters.waiting:
                    break
        kills += not last
    assert kills == KILLS
    store = LabelStore(path)
    standing = store.standing(experiment)
    assert [row.answer for row in standing] == [raters.plan[trial] for own in trials.values() for trial in own]
    assert len(standing) == len(store.all_events(experiment)) == len(raters.acknowledged) == RATERS * LABELS
    assert {row.revisions for row in standing} == {1}
    assert all(p.session.finished_at is not None for p in sessions(store, experiment))
    store.close()


def _joined(path: Path) -> tuple[str, dict[str, list[str]]]:
    """An experiment with its raters' trials, in the order in which they joined."""
    own = design(trials=40, practice=4, repeats=0.1, gold=0.05)
    assert own.counts.total == LABELS
    store = LabelStore(path)
    experiment = store.create_experiment(own, {}, prepared(own))[0].experiment
    found: dict[str, list[str]] = {store.join(experiment).session: [] for _ in range(RATERS)}
    with store._file.reading() as connection:
        for session, trial in connection.execute("SELECT session, trial FROM trials ORDER BY position").fetchall():
            found[session].append(trial)
    store.close()
    return experiment, found


def test_a_session_is_there_with_all_its_trials_or_not_at_all(tmp_path: Path) -> None:
    path, rng = tmp_path / "labels.sqlite", random.Random()
    own = design()
    store = LabelStore(path)
    experiment = store.create_experiment(own, {}, prepared(own))[0].experiment
    store.close()
    names = {f"rater {number}" for number in range(40)}
    missing, kills = set(names), 0
    while missing:
        with server(path, rng.choice(CHECKPOINTS)) as child:
            for name in missing:
                child.send("join", experiment, name)
            for kind, *values in child.replies(rng.randint(1, 12) if kills < 4 else 1000, rng.uniform(0, 10)):
                assert kind in ("file", "join"), values
                missing -= {values[0]} if kind == "join" else set()
                if not missing:
                    break
        kills += 1
    store = LabelStore(path)
    found = sessions(store, experiment)
    assert sorted(p.session.pseudonym for p in found) == sorted(names)
    assert {p.total for p in found} == {own.counts.total}
    store.close()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from app.blind.store import LabelStore
from app.errors import PageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
store = LabelStore(path, checkpoint_bytes=int(sys.argv[2]))
session = sys.argv[3]
written, refused = 0, 0
def answer():
    now = store.current(session)
    store.label(session, now.trial, now.revision, 3, 1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
while refused < 5:
    try:
        answer()
        written += 1
    except PageError as error:
        assert error.status == 503 and "could not be read or written" in error.message, error
        assert str(path.parent) not in error.message, error
        refused += 1
assert store.current(session).done == written
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for _ in range(3):
    answer()
sys.stdout.write(str(written + 3))
sys.stdout.flush()
"""


def test_a_full_disk_refuses_answers_and_the_next_ones_are_kept_when_it_is_not_full(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    for name, checkpoint_bytes, room in (("log", 2**24, 4000), ("checkpoint", 2**10, 300_000)):
        path = tmp_path / f"{name}.sqlite"
        own = design(trials=60)
        store = LabelStore(path)
        session = store.join(store.create_experiment(own, {}, prepared(own))[0].experiment)
        store.close()
        limit = room if name == "log" else path.stat().st_size + 1000
        command = [sys.executable, "-c", FULL_DISK, str(path), str(checkpoint_bytes), session.session, str(limit)]
        outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr
        store = LabelStore(path)
        assert store.current(session.session).done == int(outcome.stdout)
        assert len(store.all_events(session.experiment)) == int(outcome.stdout)
        store.close()
