"""A paragraph for a paper: what was done and what came out, with every number out of the design and the results."""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from app.blind.analysis import FOLDS
from app.blind.design import FEWEST_GOLD, QUESTIONS, Design, Experiment
from app.blind.outcomes import MetricOutcome, Overall, RaterOutcome, Results
from app.blind.sampling import BLOCKS, CALIPER, REPEAT_DISTANCE
from app.display.contexts import visible
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
    design = experiment.design
    parts = [_task(experiment), _drawing(design, results), _trials(design), _rules(design), _raters(results)]
    if results.overall.share.n:
        parts += [_accuracy(design, results), _crossed(results.overall), _signal(results.overall), _agreement(results)]
        parts += [_programs(results), _metrics(results)]
    return visible(" ".join(part for part in [*parts, _software()] if part))


def _task(experiment: Experiment) -> str:
    design = experiment.design
    question = QUESTIONS[design.form]
    shown = "one latent at a time" if design.form == "single" else "a trained and a random latent side by side"
    return (
        f"In the study {_study(experiment)}, latents of sparse autoencoders at {_several('layer', design.layers)} of a"
        f" trained transformer were set against those of its randomised {_several('variant', design.variants, '“”')}."
        f" Raters saw {shown}, without knowing which was which, were asked “{question.text}” and answered on six levels"
        f" from “{question.answers[0]}” to “{question.answers[-1]}”. They saw {TIERS[design.tier]} (tier {design.tier}"
        f" of {len(TIERS)}): {design.contexts} contexts a latent, activations scaled to the latent's own maximum."
    )


def _study(experiment: Experiment) -> str:
    """Its name, and its setting where that is not its first."""
    name, setting = experiment.study["name"], experiment.study.get("setting", {})
    parts = ", ".join(f"{key} {value}" for key, value in setting.items())
    return f"“{name}”" + (f" ({parts})" if parts and experiment.design.study != name else "")


def _drawing(design: Design, results: Results) -> str:
    return (
        f"Latents of both kinds were drawn by one rule (alive, with at least {design.contexts} different contexts) and"
        f" matched one to one, without replacement, on layer and log10 firing density (caliper {CALIPER:g}); the pool"
        f" had {count(results.pool, 'matched pair')}."
    )


def _trials(design: Design) -> str:
    counts = design.counts
    half = "of trained latents" if design.form == "single" else "with the trained latent on the left"
    others = [
        f"{count(counts.repeats, 'hidden repeat')} at least {REPEAT_DISTANCE} trials later" if counts.repeats else "",
        f"{count(counts.gold, 'gold trial')} with contexts shuffled token by token" if counts.gold else "",
        f"{count(counts.practice, 'practice trial')} with feedback" if counts.practice else "",
    ]
    added = listed([other for other in others if other])
    return (
        f"Each rater had {counts.main} main trials in an order of their own, in permuted blocks of"
        f" {', '.join(map(str, BLOCKS[:-1]))} or {BLOCKS[-1]}, half of each {half}"
        + (f"; and {added}, which are not among the labels analysed." if added else ".")
    )


def _rules(design: Design) -> str:
    few = "none" if design.least_labels == 1 else f"fewer than {design.least_labels}"
    rules = [f"raters who labelled {few} of the main trials"]
    if design.min_gold is not None and design.counts.gold >= FEWEST_GOLD:
        rules.append(f"raters with fewer than {_percent(design.min_gold)} of at least {FEWEST_GOLD} gold trials right")
    if design.min_seconds:
        rules.append(f"people whose median answer took less than {design.min_seconds:g} s")
    return (
        f"Fixed before the first label were the design, that {listed(rules)} are left out, that one session of a"
        " browser or program counts and later ones are practice, and the margin of equivalence,"
        f" {_points(design.margin)} from an accuracy of one half."
    )


def _raters(results: Results) -> str:
    labelled = [rater for rater in results.raters if rater.labelled and rater.state != "practice"]
    people, programs = (sum(rater.kind == kind for rater in labelled) for kind in ("person", "program"))
    by_state = {state: [rater for rater in labelled if rater.state == state] for state in ("excluded", "under way")}
    out, under_way = by_state["excluded"], by_state["under way"]
    early = sum(rater.left_early for rater in labelled if rater.state != "excluded")
    practice = sum(rater.state == "practice" for rater in results.raters)
    return " ".join(
        sentence
        for sentence, holds in (
            (f"{count(people, 'person', 'people')} and {count(programs, 'program')} labelled main trials.", True),
            (f"{count(len(out), 'of them was', 'of them were')} left out ({_reasons(out)}).", bool(out)),
            (f"{count(len(under_way), 'has', 'have')} not labelled enough yet.", bool(under_way)),
            (f"{early} left early; what they gave is kept.", bool(early)),
            (f"{count(practice, 'more session was', 'more sessions were')} practice, in no number.", bool(practice)),
        )
        if holds
    )


def _reasons(out: Sequence[RaterOutcome]) -> str:
    return "; ".join(
        f"{n} for: {reason}" for reason, n in sorted(Counter(rater.why.replace("; ", " and ") for rater in out).items())
    )


def _accuracy(design: Design, results: Results) -> str:
    overall, share = results.overall, results.overall.share
    kind = ("person", "people") if overall.who == "people" else ("program", "programs")
    given = (
        f"{count(overall.raters, *kind)} gave {share.n} labels on {count(results.pairs, 'matched pair')},"
        f" {share.correct} of them right: {_percent(share.value or 0.0)}"
    )
    if overall.valid == "anytime":
        return (
            f"The experiment is open, so this is an interim result: {given} (95% interval valid at any moment,"
            f" {_span(share.anytime)}, and {_p(overall.anytime_p)} against one half, from a mixture martingale: Robbins"
            " 1970, Howard et al. 2021)."
        )
    same = overall.equivalence
    verdict = "so it lies within the margin" if same.equivalent else "so it is not shown to lie within the margin"
    return (
        f"{given} (95% interval {_span(share.wilson)}, Wilson 1927; exact two-sided binomial test against one half,"
        f" {_p(overall.p_value)}). Two one-sided exact tests for equivalence within {_points(design.margin)} gave"
        f" {_p(same.p_value)} (90% interval {_span(same.interval)}, Clopper and Pearson 1934; Schuirmann 1987),"
        f" {verdict}."
        f" An interval that holds at whatever moment the experiment was closed is {_span(share.anytime)}"
        f" ({_p(overall.anytime_p)}; Robbins 1970, Howard et al. 2021)."
    )


def _crossed(overall: Overall) -> str:
    found = overall.crossed.estimate
    if found is None:
        return ""
    drawn = "matched pairs" if overall.raters == 1 else "raters and matched pairs"
    return (
        "These take labels as independent; the bootstrap over"
        f" {drawn} (Owen 2007) gives {_span(Interval(found.low, found.high))}."
    )


def _signal(overall: Overall) -> str:
    sentences, sensitivity = [], overall.sensitivity
    if sensitivity.d_prime is not None:
        criterion = f", the criterion {_number(sensitivity.criterion)}" if sensitivity.criterion is not None else ""
        source = "Hautus 1995" if criterion else "Green and Swets 1966"
        sentences.append(f"From the pooled labels, d′ is {_number(sensitivity.d_prime)}{criterion} ({source}).")
    if overall.auroc.estimate is not None:
        sentences.append(f"The AUROC of the six answers is {_estimate(overall.auroc.estimate)}.")
    return " ".join(sentences)


def _agreement(results: Results) -> str:
    sentences, same = [], results.same
    if same.value is not None:
        said = f"{same.count} of {same.n} answers ({_percent(same.value)}) were on the side of the first"
        sentences.append(f"On repeats, {said}.")
    alphas = [
        f"{_number(found.alpha)} on {what}"
        for found, what in ((results.alpha_nominal, "the side"), (results.alpha_ordinal, "the six answers (ordinal)"))
        if found.alpha is not None
    ]
    if alphas:
        sentences.append(f"Krippendorff's alpha (2011) between raters is {' and '.join(alphas)}.")
    skipped = sum(skips.n for skips in results.skips)
    if skipped:
        sentences.append(f"{count(skipped, 'main trial was', 'main trials were')} skipped.")
    return " ".join(sentences)


def _programs(results: Results) -> str:
    own = [rater for rater in results.raters if rater.state == "program"]
    return " ".join(
        f"The program “{rater.pseudonym}” had {rater.share.correct} of {rater.share.n} right"
        f" ({_percent(rater.share.value or 0.0)}, 95% interval {_span(rater.share.interval)})."
        for rater in own
    )


def _metrics(results: Results) -> str:
    told = [metric for metric in results.metrics if metric.auroc is not None]
    sentences = []
    if told:
        sentences.append(
            f"Of {count(len(told), 'statistic')} of the same latents, “{told[0].name}” tells trained from random ones"
            f" best: {_area(told[0])}."
        )
    if results.logistic.auroc is not None:
        sentences.append(
            f"A ridge logistic regression on all of them, out of fold in {FOLDS} folds of pairs, has"
            f" {_area(results.logistic)}."
        )
    return " ".join(sentences)


def _area(metric: MetricOutcome) -> str:
    assert metric.auroc is not None
    return f"AUROC {_estimate(metric.auroc)}, on {metric.trained} trained and {metric.random} random"


def _software() -> str:
    try:
        return f"Software: Latent Lineup {version('latent-lineup')}."
    except PackageNotFoundError:
        return "Software: Latent Lineup."


def _several(noun: str, values: Sequence[object], quotes: str = "") -> str:
    first, last = (quotes[0], quotes[1]) if quotes else ("", "")
    return f"{noun}{'s' if len(values) > 1 else ''} {listed([f'{first}{value}{last}' for value in values])}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(share: float) -> str:
    return f"{100 * share:.3g} percentage points"


def _number(value: float) -> str:
    # Adding zero makes −0.0 a plain zero.
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def _span(interval: Interval) -> str:
    return f"{_percent(interval.low)} to {_percent(interval.high)}"


def _estimate(found: Estimate) -> str:
    return f"{_number(found.value)} (95% interval {_number(found.low)} to {_number(found.high)})"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
