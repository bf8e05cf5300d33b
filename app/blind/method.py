"""A paragraph for a paper: what was done and what came out. The words are in templates/texts/method.txt."""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from app.blind.analysis import FOLDS
from app.blind.design import FEWEST_GOLD, QUESTIONS, Design, Experiment
from app.blind.outcomes import Results
from app.blind.sampling import BLOCKS, CALIPER, REPEAT_DISTANCE
from app.display.contexts import visible
from app.pages.render import environment
from core.stats import Estimate, Interval
from core.text import count, listed

TIERS = {
    1: "contexts",
    2: "contexts and a scaled histogram of activations",
    3: "contexts, a scaled histogram of activations and the tokens whose logits it moves most",
    4: "contexts, histogram, tokens whose logits it moves most, density, largest activation, explanation and scores",
}
"""What a rater saw of a latent."""


def method_paragraph(experiment: Experiment, results: Results) -> str:
    """Design, raters and results in one paragraph; what could not be computed is left out.

    Names out of the study are in it as they are, but for invisible characters: whoever shows it escapes it.
    """
    design, overall = experiment.design, results.overall
    alphas = ((results.alpha_nominal, "the side"), (results.alpha_ordinal, "the six answers (ordinal)"))
    context = {
        "design": design,
        "single": design.form == "single",
        "study": _study(experiment),
        "question": QUESTIONS[design.form],
        "tiers": TIERS,
        "caliper": f"{CALIPER:g}",
        "blocks": f"{', '.join(map(str, BLOCKS[:-1]))} or {BLOCKS[-1]}",
        "added": _added(design),
        "rules": _rules(design),
        "results": results,
        "raters": _raters(results),
        "overall": overall,
        "share": overall.share,
        "kind": ("person", "people") if overall.who == "people" else ("program", "programs"),
        "sensitivity": overall.sensitivity,
        "alphas": " and ".join(f"{_decimals(a.alpha)} on {what}" for a, what in alphas if a.alpha is not None),
        "skipped": sum(skips.n for skips in results.skips),
        "programs": [rater for rater in results.raters if rater.state == "program"],
        "told": [metric for metric in results.metrics if metric.auroc is not None],
        "folds": FOLDS,
        "version": _version(),
        "count": count,
        "several": _several,
    }
    text = _TEXTS.get_template("texts/method.txt").render(context)
    return " ".join(line for line in map(str.strip, text.split("\n")) if line)


def _study(experiment: Experiment) -> str:
    """Its name, and its setting where that is not its first."""
    name, setting = experiment.study["name"], experiment.study.get("setting", {})
    parts = ", ".join(f"{key} {value}" for key, value in setting.items())
    return f"“{name}”" + (f" ({parts})" if parts and experiment.design.study != name else "")


def _added(design: Design) -> str:
    counts = design.counts
    others = [
        f"{count(counts.repeats, 'hidden repeat')} at least {REPEAT_DISTANCE} trials later" if counts.repeats else "",
        f"{count(counts.gold, 'gold trial')} with contexts shuffled token by token" if counts.gold else "",
        f"{count(counts.practice, 'practice trial')} with feedback" if counts.practice else "",
    ]
    return listed([other for other in others if other])


def _rules(design: Design) -> str:
    few = "none" if design.least_labels == 1 else f"fewer than {design.least_labels}"
    rules = [f"raters who labelled {few} of the main trials"]
    if design.min_gold is not None and design.counts.gold >= FEWEST_GOLD:
        share = _percentage(design.min_gold)
        rules.append(f"raters with fewer than {share} of at least {FEWEST_GOLD} gold trials right")
    if design.min_seconds:
        rules.append(f"people whose median answer took less than {design.min_seconds:g} s")
    return listed(rules)


def _raters(results: Results) -> dict[str, Any]:
    """How many there are of each kind, and why some are left out."""
    labelled = [rater for rater in results.raters if rater.labelled and rater.state != "practice"]
    out = Counter(rater.why.replace("; ", " and ") for rater in labelled if rater.state == "excluded")
    return {
        "people": sum(rater.kind == "person" for rater in labelled),
        "programs": sum(rater.kind == "program" for rater in labelled),
        "out": out.total(),
        "reasons": "; ".join(f"{n} for: {reason}" for reason, n in sorted(out.items())),
        "under_way": sum(rater.state == "under way" for rater in labelled),
        "early": sum(rater.left_early for rater in labelled if rater.state != "excluded"),
        "practice": sum(rater.state == "practice" for rater in results.raters),
    }


def _version() -> str:
    try:
        return f" {version('latent-lineup')}"
    except PackageNotFoundError:
        return ""


def _several(noun: str, values: Sequence[object], quotes: str = "") -> str:
    first, last = (quotes[0], quotes[1]) if quotes else ("", "")
    return f"{noun}{'s' if len(values) > 1 else ''} {listed([f'{first}{value}{last}' for value in values])}"


def _percentage(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(share: float) -> str:
    return f"{100 * share:.3g} percentage points"


def _decimals(value: float) -> str:
    # Adding zero makes −0.0 a plain zero.
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def _span(interval: Interval | Estimate) -> str:
    return f"{_percentage(interval.low)} to {_percentage(interval.high)}"


def _estimate(found: Estimate) -> str:
    return f"{_decimals(found.value)} (95% interval {_decimals(found.low)} to {_decimals(found.high)})"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


_TEXTS = environment()
# Plain text: nothing is escaped, and the ends of lines in a name are drawn, for those of the template are spaces.
_TEXTS.autoescape = False
_TEXTS.finalize = lambda value: visible(value) if isinstance(value, str) else value
_TEXTS.filters |= {
    "percentage": _percentage,
    "points": _points,
    "decimals": _decimals,
    "span": _span,
    "estimate": _estimate,
    "p": _p,
}
