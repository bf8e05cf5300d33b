"""Matches trained and random latents in pairs, and draws one rater's trials from them; all randomness is handed in."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeAlias, TypeVar

from app.blind.design import Design, DesignError, Form, Kind, Truth

CALIPER = 0.1
"""Largest difference in density within a pair, in decades."""
REPEAT_DISTANCE = 8
"""Trials from a trial to its repeat, at least."""
GOLD_FREE = 3
"""First trials after practice that are never gold."""
BLOCKS = (4, 6, 8)
"""Sizes of permuted blocks. None of 2: labels are then so unlike coin flips that an exact test of size 5% calls a rater
who just alternates significant in 9 of 100 sessions (simulated); with 8 it is 3.5%."""

Cell: TypeAlias = tuple[int, str]
"""A layer and a random variant."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Candidate:
    """A latent that may be shown; `density` is the share of tokens on which it is active, above 0."""

    sae: int
    latent: int
    variant: str
    layer: int
    density: float
    statistics: Mapping[str, float | None]

    @property
    def key(self) -> tuple[int, int]:
        """Its SAE and its index there."""
        return self.sae, self.latent


@dataclass(frozen=True)
class Pair:
    """A trained and a random latent of the same layer and about the same density."""

    trained: Candidate
    random: Candidate
    role: Literal["main", "practice"] = "main"

    @property
    def cell(self) -> Cell:
        """The layer and the random variant."""
        return self.random.layer, self.random.variant


@dataclass(frozen=True)
class Trial:
    """What one rater is shown at one position, from 0.

    `truth` is the class of the one latent, or the side on which the trained one is. In a gold trial the pair's random
    latent is shown shuffled, so the truth of a single one is 'random' and that of two is the side left intact.
    `repeats` is the position of the trial that a repeat shows again.
    """

    position: int
    kind: Kind
    form: Form
    left: Candidate
    right: Candidate | None
    truth: Truth
    repeats: int | None


def match(
    trained: Sequence[Candidate], random: Sequence[Candidate], rng: Random, caliper: float = CALIPER
) -> list[Pair]:
    """Give random latents, in random order, the trained latent of their layer that is nearest in log10 density.

    No latent is used twice; a pair is never further apart than `caliper` decades. The variants of a layer take turns,
    so that none takes the trained latents away from the others.
    """
    pairs: list[Pair] = []
    for layer in sorted({candidate.layer for candidate in random}):
        free = _Free(_shuffled([c for c in trained if c.layer == layer], rng))
        queues: dict[str, list[Candidate]] = {}
        for candidate in _shuffled([c for c in random if c.layer == layer], rng):
            queues.setdefault(candidate.variant, []).append(candidate)
        while queues:
            for variant in _shuffled(sorted(queues), rng):
                pair = _next_pair(queues[variant], free, caliper)
                if pair is None:
                    del queues[variant]
                else:
                    pairs.append(pair)
    return pairs


def _shuffled(items: Sequence[_T], rng: Random) -> list[_T]:
    return rng.sample(items, len(items))


def _next_pair(queue: list[Candidate], free: "_Free", caliper: float) -> Pair | None:
    while queue:
        candidate = queue.pop()
        partner = free.take_nearest(candidate.density, caliper)
        if partner is not None:
            return Pair(partner, candidate)
    return None


class _Free:
    """Latents that are still free, by log10 density; equal ones stay in the order in which they were given."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = sorted(candidates, key=lambda candidate: candidate.density)
        self._densities = [math.log10(candidate.density) for candidate in self._candidates]

    def take_nearest(self, density: float, caliper: float) -> Candidate | None:
        wanted = math.log10(density)
        at = bisect_left(self._densities, wanted)
        near = [i for i in (at - 1, at) if 0 <= i < len(self._densities)]
        best = min(near, key=lambda i: abs(self._densities[i] - wanted), default=None)
        if best is None or abs(self._densities[best] - wanted) > caliper:
            return None
        del self._densities[best]
        return self._candidates.pop(best)


def draw_pool(candidates: Sequence[Candidate], design: Design, rng: Random) -> list[Pair]:
    """Matched pairs for an experiment, those of role 'practice' first, spread evenly over layers and random variants.

    Raises DesignError when a cell is empty or there are too few pairs in all.
    """
    trained = [c for c in candidates if c.layer in design.layers and c.variant not in design.variants]
    random = [c for c in candidates if c.layer in design.layers and c.variant in design.variants]
    found: dict[Cell, list[Pair]] = {(layer, variant): [] for layer in design.layers for variant in design.variants}
    for pair in match(trained, random, rng):
        found[pair.cell].append(pair)
    _require_enough(found, design)
    pairs = [pair for own in found.values() for pair in own]
    practice = draw_evenly(pairs, design.practice_pairs, rng)
    taken = {pair.random.key for pair in practice}
    rest = [pair for pair in pairs if pair.random.key not in taken]
    main = draw_evenly(rest, min(len(rest), design.pool or 2 * design.rater_pairs), rng)
    return [*(replace(pair, role="practice") for pair in practice), *main]


def _require_enough(found: Mapping[Cell, Sequence[Pair]], design: Design) -> None:
    main = design.pool or design.rater_pairs
    total = sum(len(pairs) for pairs in found.values())
    if total >= main + design.practice_pairs and all(found.values()):
        return
    cells = ", ".join(f"layer {layer} × {variant} {len(pairs)}" for (layer, variant), pairs in found.items())
    raise DesignError(
        f"The design needs {main} matched pairs and {design.practice_pairs} more for practice, and at least one in each"
        f" cell; found {total}: {cells}. Ask for fewer trials or a smaller pool, for fewer contexts a latent, or for"
        " other layers and variants."
    )


def draw_evenly(pairs: Sequence[Pair], wanted: int, rng: Random) -> list[Pair]:
    """Draw `wanted` of the pairs, from each cell as many as from any other or all it has, in random order."""
    if wanted > len(pairs):
        raise DesignError(f"{wanted} pairs are to be drawn, but there are {len(pairs)}: make the pool larger.")
    cells: dict[Cell, list[Pair]] = {}
    for pair in _shuffled(pairs, rng):
        cells.setdefault(pair.cell, []).append(pair)
    drawn: list[Pair] = []
    while len(drawn) < wanted:
        filled = [own for own in cells.values() if own]
        drawn += [own.pop() for own in rng.sample(filled, min(len(filled), wanted - len(drawn)))]
    return _shuffled(drawn, rng)


def permuted_blocks(length: int, rng: Random) -> list[bool]:
    """Booleans, half of them true, in blocks of random even size of which each is half true; `length` is even."""
    values: list[bool] = []
    while len(values) < length:
        left = length - len(values)
        size = rng.choice([size for size in BLOCKS if size == left or size <= left - BLOCKS[0]] or [left])
        values += rng.sample([True, False] * (size // 2), size)
    return values


@dataclass(eq=False)
class _Draft:
    """A trial that has no position yet."""

    kind: Kind
    left: Candidate
    right: Candidate | None
    truth: Truth
    original: "_Draft | None" = None


def draw_session(pool: Sequence[Pair], practice_pool: Sequence[Pair], design: Design, seed: int) -> list[Trial]:
    """One rater's trials in order: practice, then main trials with gold ones and repeats among them.

    The pools hold at least `design.rater_pairs` and `design.practice_pairs`.
    """
    rng = Random(seed)
    counts = design.counts
    of_main = design.rater_pairs - counts.gold
    main = draw_evenly(pool, of_main, rng)
    used = {pair.random.key for pair in main}
    gold = draw_evenly([pair for pair in pool if pair.random.key not in used], counts.gold, rng)
    practice = draw_evenly(practice_pool, design.practice_pairs, rng)
    order = _drafts("main", main, design.form, permuted_blocks(counts.main, rng))
    _insert_gold(order, gold, design.form, rng)
    _insert_repeats(order, counts.repeats, rng)
    sides = permuted_blocks(counts.practice + counts.practice % 2, rng)[: counts.practice]
    order = _drafts("practice", practice, design.form, sides) + order
    places = {id(draft): position for position, draft in enumerate(order)}
    return [
        Trial(at, d.kind, design.form, d.left, d.right, d.truth, places[id(d.original)] if d.original else None)
        for at, d in enumerate(order)
    ]


def _drafts(kind: Kind, pairs: Sequence[Pair], form: Form, firsts: Sequence[bool]) -> list[_Draft]:
    """Trials of pairs in random order; where `firsts` is true, the one latent is trained, or the left one."""
    if form == "pair":
        return [_side_by_side(kind, pair, trained_left) for pair, trained_left in zip(pairs, firsts, strict=True)]
    trained = [pair.trained for pair in pairs]
    # The order of pairs is random already; turned round, so that both of a pair rarely stand together.
    random = [pair.random for pair in pairs[::-1]]
    return [
        _Draft(kind, trained.pop(), None, "trained") if first else _Draft(kind, random.pop(), None, "random")
        for first in firsts
    ]


def _side_by_side(kind: Kind, pair: Pair, trained_left: bool) -> _Draft:
    if trained_left:
        return _Draft(kind, pair.trained, pair.random, "left")
    return _Draft(kind, pair.random, pair.trained, "right")


def _insert_gold(order: list[_Draft], pairs: Sequence[Pair], form: Form, rng: Random) -> None:
    # One in each of as many equal stretches, so that they are spread over the session.
    stretch = (len(order) + 1 - GOLD_FREE) / max(1, len(pairs))
    for number, pair in enumerate(pairs):
        at = GOLD_FREE + math.floor((number + rng.random()) * stretch) + number
        single = _Draft("gold", pair.random, None, "random")
        order.insert(at, single if form == "single" else _side_by_side("gold", pair, rng.random() < 0.5))


def _insert_repeats(order: list[_Draft], wanted: int, rng: Random) -> None:
    early = order[: len(order) + 1 - REPEAT_DISTANCE]
    for original in rng.sample([draft for draft in early if draft.kind == "main"], wanted):
        at = rng.randint(order.index(original) + REPEAT_DISTANCE, len(order))
        order.insert(at, _again(original))


def _again(original: _Draft) -> _Draft:
    """The same latents once more; of two, each on the other side."""
    if original.right is None:
        return _Draft("repeat", original.left, None, original.truth, original)
    truth: Truth = "right" if original.truth == "left" else "left"
    return _Draft("repeat", original.right, original.left, truth, original)
