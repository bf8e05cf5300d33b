"""What a study would take: a study, its models' shapes and a machine come in, seconds, bytes and money go out."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline import llama
from pipeline.autointerp.estimate import Estimate
from pipeline.config import Study
from pipeline.latents.codes import NONZERO
from pipeline.models.shapes import Shape
from pipeline.plan.machines import Machine
from pipeline.plan.work import STAGES, Amount, Work, disk, memory

BYTES_A_SECOND = 1e9
"""To and from files: an assumption, an ordinary SSD."""
ANSWER_SECONDS = 2.0
"""Between a prompt and its answer: an assumption."""


LOCAL_SPEED = 30e9
"""FLOP a second of llama.cpp on a core, as its package comes: measured with the model of the demo."""
LOCAL_BYTES = 0.7
"""Of a file, for each parameter: most weights have four bits, some have more."""


class Line(NamedTuple):
    """A part of something that is held, in bytes."""

    what: str
    size: float


class Plan(NamedTuple):
    """Estimates for one machine."""

    machine: Machine
    models: tuple[Shape, ...]
    saes: int
    stages: tuple[tuple[str, Amount, float], ...]
    """Name, amount, seconds."""
    memory: tuple[Line, ...]
    """Bytes of main memory."""
    gpu_memory: tuple[Line, ...]
    """Bytes of the GPU's memory; empty where there is none."""
    disk: tuple[Line, ...]
    asked: Estimate
    """Of a language model, about all SAEs; all zero where none is asked."""
    answer_seconds: float
    """Waiting for it."""
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The whole study."""
        return sum(seconds for _, _, seconds in self.stages) + self.answer_seconds


def plan(study: Study, shapes: Sequence[Shape], machine: Machine) -> Plan:
    """Estimate what a study takes on a machine; `shapes` are those of its models.

    Raises LineupError for layers or variants that do not exist.
    """
    works = [Work(study, config, shape) for config, shape in zip(study.models, shapes, strict=True)]
    asked = _asked(works)
    held = list(_largest(works))
    return Plan(
        machine=machine,
        models=tuple(shapes),
        saes=sum(work.saes for work in works),
        stages=tuple(_stages(works, machine)),
        memory=tuple(Line(what, size) for what, size, gpu in held if not (gpu and machine.gpu_memory)),
        gpu_memory=tuple(Line(what, size) for what, size, gpu in held if gpu and machine.gpu_memory),
        disk=tuple(_disk(works)),
        asked=asked,
        answer_seconds=_waiting(study, asked, machine),
        warnings=tuple(_warnings(works)),
    )


def _stages(works: Sequence[Work], machine: Machine) -> Iterator[tuple[str, Amount, float]]:
    for stage in STAGES:
        amount = sum((stage.amount(work) for work in works), Amount())
        seconds = amount.flops / (machine.speed * stage.efficiency) + amount.core_seconds / machine.cores
        yield stage.name, amount, seconds + amount.serial_seconds + amount.bytes_moved / BYTES_A_SECOND


def _largest(works: Sequence[Work]) -> Iterator[tuple[str, float, bool]]:
    """Models come one after another, so the largest of each kind counts."""
    for lines in zip(*(memory(work) for work in works), strict=True):
        yield max(lines, key=lambda line: line[1])


def _disk(works: Sequence[Work]) -> Iterator[Line]:
    for number, lines in enumerate(zip(*(disk(work) for work in works), strict=True)):
        sizes = [size for _, size in lines]
        yield Line(lines[0][0], max(sizes) if number == 0 else sum(sizes))


def _asked(works: Sequence[Work]) -> Estimate:
    each = [(work.saes, work.asked()) for work in works]
    return Estimate(
        prompts=sum(count * one.prompts for count, one in each),
        prompt_tokens=sum(count * one.prompt_tokens for count, one in each),
        new_tokens=sum(count * one.new_tokens for count, one in each),
        answer_tokens=sum(count * one.answer_tokens for count, one in each),
        cost=sum(count * one.cost for count, one in each),
    )


def _waiting(study: Study, asked: Estimate, machine: Machine) -> float:
    settings = study.autointerp.llm
    if asked.prompts and settings.endpoint == llama.LOCAL:
        parameters = sum(piece.stat().st_size for piece in llama.find(settings.model)) / LOCAL_BYTES
        flops = 2 * parameters * (asked.new_tokens + asked.answer_tokens)
        return flops / (LOCAL_SPEED * min(machine.cores, llama.MOST_THREADS))
    waits = [asked.prompts * ANSWER_SECONDS / settings.concurrency]
    if settings.requests_per_minute:
        waits.append(60 * asked.prompts / settings.requests_per_minute)
    if settings.tokens_per_minute:
        waits.append(60 * (asked.prompt_tokens + asked.answer_tokens) / settings.tokens_per_minute)
    return max(waits)


def _warnings(works: Sequence[Work]) -> Iterator[str]:
    for work in works:
        for sae in work.study.saes:
            if work.firings(sae) > NONZERO:
                most = math.floor(NONZERO / work.firings(sae) * work.study.corpus.tokens)
                yield (
                    f"{work.shape.info.model}, {sae.label}: {work.firings(sae):,.0f} activations that are not zero are"
                    f" more than the {NONZERO:,} that the program keeps of an SAE; the run would end there. Lower"
                    f" corpus.tokens to at most {most:,}, or sae.k."
                )
    settings, asked = works[0].study.autointerp.llm, _asked(works)
    if settings.max_cost is not None and asked.cost > settings.max_cost:
        yield (
            f"The language model may cost {asked.cost:,.2f}, more than autointerp.llm.max_cost {settings.max_cost:g}:"
            " the run would end there."
        )
