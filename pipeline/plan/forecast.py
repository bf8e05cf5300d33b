"""Estimates time, memory, disk and cost of a study on a machine, and writes them as a table."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from core.text import byte_size, count, duration, large
from pipeline import llama
from pipeline.checks import check_model, check_names
from pipeline.config import Study
from pipeline.latents.codes import NONZERO
from pipeline.llama import LOCAL
from pipeline.models.shapes import Shape, shape_of
from pipeline.plan.machines import Machine, gpu_machine, this_machine
from pipeline.plan.work import STAGES, Amount, LlmWork, Work, disk, memory

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
    asked: LlmWork
    """Of a language model, about all SAEs; all zero where none is asked."""
    answer_seconds: float
    """Waiting for it."""
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The whole study."""
        return sum(seconds for _, _, seconds in self.stages) + self.answer_seconds


def plan(study: Study, shapes: Sequence[Shape], machine: Machine) -> Plan:
    """LlmWork what a study takes on a machine; `shapes` are those of its models.

    Raises UserError for layers or variants that do not exist.
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
        yield stage.label, amount, seconds + amount.serial_seconds + amount.bytes_moved / BYTES_A_SECOND


def _largest(works: Sequence[Work]) -> Iterator[tuple[str, float, bool]]:
    """Models come one after another, so the largest of each kind counts."""
    for lines in zip(*(memory(work) for work in works), strict=True):
        yield max(lines, key=lambda line: line[1])


def _disk(works: Sequence[Work]) -> Iterator[Line]:
    for number, lines in enumerate(zip(*(disk(work) for work in works), strict=True)):
        sizes = [size for _, size in lines]
        yield Line(lines[0][0], max(sizes) if number == 0 else sum(sizes))


def _asked(works: Sequence[Work]) -> LlmWork:
    each = [(work.saes, work.asked()) for work in works]
    return LlmWork(
        prompts=sum(count * one.prompts for count, one in each),
        prompt_tokens=sum(count * one.prompt_tokens for count, one in each),
        new_tokens=sum(count * one.new_tokens for count, one in each),
        answer_tokens=sum(count * one.answer_tokens for count, one in each),
        cost=sum(count * one.cost for count, one in each),
    )


def _waiting(study: Study, asked: LlmWork, machine: Machine) -> float:
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


def describe(study: Study, gpus: Sequence[str] = (), folder: Path = Path()) -> str:
    """The plan for this machine, whose speed is measured, and for every GPU that is named, as text.

    `folder` lies on the disk that the study would be written to. Raises UserError for a GPU or a model whose size is
    not known, and for what the model cannot have.
    """
    check_names(study)
    machines = [*(gpu_machine(name, study.precision) for name in gpus), this_machine(folder, study.precision)]
    shapes = [shape_of(model) for model in study.models]
    for config, shape in zip(study.models, shapes, strict=True):
        check_model(study, config, shape.info, shape.model)
    return render(study, [plan(study, shapes, machine) for machine in machines[-1:] + machines[:-1]])


def render(study: Study, plans: Sequence[Plan]) -> str:
    """Plans of one study for several machines: times side by side, sizes below."""
    first = plans[0]
    parts = [
        [_title(study, first), *(_model(shape) for shape in first.models)],
        _times(plans),
        _table([row for one in plans for row in _sizes(one, with_disk=one is first)]),
        _asking(study, first),
        _assumed(study, plans),
        [f"Warning: {text}" for text in first.warnings],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _title(study: Study, first: Plan) -> str:
    drawn = f", the random ones drawn {study.variant_seeds} times" if study.variant_seeds > 1 else ""
    made = f"{count(first.saes, 'SAE')} of {count(len(first.models), 'model')} in"
    return f"{study.name}: {made} {count(len(study.variants), 'variant')}{drawn}. All numbers are estimates."


def _model(shape: Shape) -> str:
    info = shape.info
    return (
        f"{info.model}: {info.n_layers} layers of {info.d_model:,} dimensions; {large(info.parameters)} parameters,"
        f" {large(shape.block_parameters)} of them in blocks ({info.note})"
    )


def _times(plans: Sequence[Plan]) -> list[str]:
    rows = [["time", "matrix products", *(_short(one.machine) for one in plans)]]
    for stage in zip(*(one.stages for one in plans), strict=True):
        name, amount, _ = stage[0]
        if not any(amount):
            continue
        products = f"{large(amount.flops)}FLOP" if amount.flops else ""
        rows.append([f"  {name}", products, *(duration(seconds) for _, _, seconds in stage)])
    if plans[0].asked.prompts:
        rows.append(["  waiting for the language model", "", *(duration(one.answer_seconds) for one in plans)])
    return _table([*rows, ["  all", "", *(duration(one.seconds) for one in plans)]])


def _sizes(plan: Plan, with_disk: bool) -> list[list[str]]:
    machine = plan.machine
    kinds = [("main memory", plan.memory, machine.memory), ("GPU memory", plan.gpu_memory, machine.gpu_memory)]
    if with_disk:
        kinds.append(("disk", plan.disk, machine.disk))
    rows = []
    for kind, lines, there in kinds:
        if lines:
            rows.append(
                [f"{kind}, {_short(machine)}", byte_size(sum(line.size for line in lines)), _enough(lines, there)]
            )
            rows += [[f"  {line.what}", byte_size(line.size), ""] for line in lines]
    return rows


def _enough(lines: Sequence[Line], there: float | None) -> str:
    if there is None:
        return ""
    fits = sum(line.size for line in lines) <= there
    return f"of {byte_size(there)}" if fits else f"exceeds the {byte_size(there)} available"


def _asking(study: Study, plan: Plan) -> list[str]:
    asked, settings = plan.asked, study.autointerp.llm
    if not asked.prompts:
        return ["No language model is asked."]
    tokens = f"{large(asked.prompt_tokens)} prompt tokens, {large(asked.answer_tokens)} answer tokens"
    if settings.endpoint == LOCAL:
        return [f"{settings.model}, on this machine, is asked at most {count(asked.prompts, 'time')}: {tokens}."]
    cost = f"cost {asked.cost:,.2f} at {settings.price_in:g} and {settings.price_out:g} a million tokens"
    if not (settings.price_in or settings.price_out):
        cost = "for the cost set autointerp.llm.price_in and price_out"
    return [f"The language model is asked at most {count(asked.prompts, 'time')}: {tokens}; {cost}."]


def _assumed(study: Study, plans: Sequence[Plan]) -> list[str]:
    lines = [f"{one.machine.name}: {large(one.machine.speed)}FLOP/s, {one.machine.origin}" for one in plans]
    lines += [f"beside {one.machine.name}: {one.machine.cores} cores" for one in plans[1:]]
    lines += [
        "every stage reaches the share of that speed which it reached in the demo on two cores",
        f"{byte_size(BYTES_A_SECOND)}/s to and from files",
        "not counted: downloads, and writing the database while the study runs (up to a sixth of the time)",
    ]
    if plans[0].asked.prompts:
        local = f"a local language model runs at {large(LOCAL_SPEED)}FLOP/s on a core"
        answers = local if study.autointerp.llm.endpoint == LOCAL else f"an answer takes {ANSWER_SECONDS:g} s"
        lines.append(f"{answers}, and enough latents qualify everywhere")
    return ["assumed", *(f"  {line}" for line in lines)]


def _short(machine: Machine) -> str:
    return machine.name.partition(" (")[0]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need to be, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("   ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines
