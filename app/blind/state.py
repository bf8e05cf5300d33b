"""Where a session stands, derived from its trials and the log; touches no file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.blind.design import Kind, Truth
from app.blind.records import Current, Event, Session, Undoable
from app.errors import PageError


@dataclass(frozen=True)
class TrialState:
    """A trial, how many revisions it has, and the event of the last one."""

    trial: str
    position: int
    kind: Kind
    truth: Truth
    revisions: int
    last: Event | None

    @property
    def answered(self) -> bool:
        """Whether an answer stands: a label or a skip."""
        return self.last in ("label", "skip")


@dataclass(frozen=True)
class SessionState:
    """A session's trials in order."""

    trials: Sequence[TrialState]

    def of(self, trial: str) -> TrialState:
        """One of them; raises a 404 for a trial of another session or of none."""
        for state in self.trials:
            if state.trial == trial:
                return state
        raise no_trial()

    @property
    def current(self) -> TrialState | None:
        """The first trial without a standing answer."""
        return next((state for state in self.trials if not state.answered), None)

    @property
    def done(self) -> int:
        """Trials with a standing answer."""
        return sum(state.answered for state in self.trials)

    @property
    def practice(self) -> int:
        """Practice trials."""
        return sum(state.kind == "practice" for state in self.trials)

    @property
    def undoable(self) -> Undoable | None:
        """The latest answer, unless it was to a practice trial, of which the truth has been shown."""
        latest = next((state for state in reversed(self.trials) if state.answered), None)
        if latest is None or latest.kind == "practice":
            return None
        return Undoable(latest.trial, latest.revisions + 1)

    def after(self, changed: TrialState, revision: int, event: Event) -> "SessionState":
        """The state with one more row in the log."""
        new = replace(changed, revisions=revision, last=event)
        return SessionState(tuple(new if state is changed else state for state in self.trials))


@dataclass(frozen=True)
class Live:
    """A session as it is on disk: its row, whether its experiment is frozen and closed, and where it stands."""

    session: Session
    frozen: bool
    closed: bool
    state: SessionState

    @property
    def over(self) -> bool:
        """Whether it takes no more answers."""
        return self.closed or self.session.finished_at is not None

    @property
    def current(self) -> Current:
        """What the rater is to do now."""
        trial = None if self.over else self.state.current
        return Current(
            trial=trial.trial if trial else None,
            revision=trial.revisions + 1 if trial else 0,
            practice=trial is not None and trial.kind == "practice",
            done=self.state.done,
            total=len(self.state.trials),
            practice_total=self.state.practice,
            undoable=None if self.over else self.state.undoable,
            finished=self.over,
        )


def no_trial() -> PageError:
    """404: a trial of another session, or of none."""
    return PageError(404, "No such trial", "This trial does not belong to your session.", "Go back to your session.")
