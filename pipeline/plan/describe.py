"""What a study would take, without running it: a study and names of GPUs come in, a table for people goes out."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.checks import check_model, check_names
from pipeline.config import Study
from pipeline.llama import LOCAL
from pipeline.models.shapes import Shape, shape_of
from pipeline.plan.forecast import ANSWER_SECONDS, BYTES_A_SECOND, LOCAL_SPEED, Line, Plan, plan
from pipeline.plan.machines import Machine, gpu_machine, this_machine


def describe(study: Study, gpus: Sequence[str] = (), folder: Path = Path()) -> str:
    """The plan for this machine, whose speed is measured, and for every GPU that is named, as text.

    `folder` lies on the disk that the study would be written to. Raises LineupError for a GPU or a model whose size is
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
    made = f"{_count(first.saes, 'SAE')} of {_count(len(first.models), 'model')} in"
    return f"{study.name}: {made} {_count(len(study.variants), 'variant')}{drawn}. All numbers are estimates."


def _model(shape: Shape) -> str:
    info = shape.info
    return (
        f"{info.model}: {info.n_layers} layers of {info.d_model:,} dimensions; {_large(info.parameters)} parameters,"
        f" {_large(shape.block_parameters)} of them in blocks ({info.note})"
    )


def _times(plans: Sequence[Plan]) -> list[str]:
    rows = [["time", "matrix products", *(_short(one.machine) for one in plans)]]
    for stage in zip(*(one.stages for one in plans), strict=True):
        name, amount, _ = stage[0]
        if not any(amount):
            continue
        products = f"{_large(amount.flops)}FLOP" if amount.flops else ""
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
            rows.append([f"{kind}, {_short(machine)}", _bytes(sum(line.size for line in lines)), _enough(lines, there)])
            rows += [[f"  {line.what}", _bytes(line.size), ""] for line in lines]
    return rows


def _enough(lines: Sequence[Line], there: float | None) -> str:
    if there is None:
        return ""
    fits = sum(line.size for line in lines) <= there
    return f"of {_bytes(there)}" if fits else f"MORE than the {_bytes(there)} that are there"


def _asking(study: Study, plan: Plan) -> list[str]:
    asked, settings = plan.asked, study.autointerp.llm
    if not asked.prompts:
        return ["No language model is asked."]
    tokens = f"{_large(asked.prompt_tokens)} prompt tokens, {_large(asked.answer_tokens)} answer tokens"
    if settings.endpoint == LOCAL:
        return [f"{settings.model}, on this machine, is asked at most {_count(asked.prompts, 'time')}: {tokens}."]
    cost = f"cost {asked.cost:,.2f} at {settings.price_in:g} and {settings.price_out:g} a million tokens"
    if not (settings.price_in or settings.price_out):
        cost = "for the cost set autointerp.llm.price_in and price_out"
    return [f"The language model is asked at most {_count(asked.prompts, 'time')}: {tokens}; {cost}."]


def _assumed(study: Study, plans: Sequence[Plan]) -> list[str]:
    lines = [f"{one.machine.name}: {_large(one.machine.speed)}FLOP/s, {one.machine.origin}" for one in plans]
    lines += [f"beside {one.machine.name}: {one.machine.cores} cores" for one in plans[1:]]
    lines += [
        "every stage reaches the share of that speed which it reached in the demo on two cores",
        f"{_bytes(BYTES_A_SECOND)}/s to and from files",
        "not counted: downloads, and writing the database while the study runs (up to a sixth of the time)",
    ]
    if plans[0].asked.prompts:
        local = f"a local language model runs at {_large(LOCAL_SPEED)}FLOP/s on a core"
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


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _large(number: float) -> str:
    """Three digits and the letter of a power of a thousand: 135M, 41.2T."""
    letters = ["", "k", "M", "G", "T", "P", "E"]
    while number >= 999.5 and len(letters) > 1:
        number /= 1000
        letters.pop(0)
    return f"{number:.3g} {letters[0]}"


def _bytes(size: float) -> str:
    return f"{_large(size)}B"


def duration(seconds: float) -> str:
    """A time in the unit that people would use."""
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.{0 if seconds >= 100 * size else 1}f} {name}"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
