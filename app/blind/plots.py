"""Plotly figures of the results of a blind experiment, in the style of `app.charts`."""

from collections.abc import Sequence

from app.blind.design import Form
from app.blind.outcomes import Answers, Overall, Results
from app.blind.words import QUESTIONS
from app.charts import Figure, figure, title

HALF, RATERS = "var(--line-strong)", "var(--ink)"
POSITIVE, NEGATIVE = "v0", "v1"
"""Colours of trained (or right) and of random (or left)."""
UNIT = [-0.02, 1.02]


def figures(results: Results) -> list[tuple[str, Figure]]:
    """Every plot that there is something to draw for, with its title; parts and statistics are lines of tables."""
    overall = results.overall
    if not overall.share.n:
        return []
    curve = [("ROC of the six answers", roc(overall))] if overall.roc else []
    return [*curve, ("Answers by truth", answers(overall.answers, results.form))]


def roc(overall: Overall) -> Figure:
    """Hits against false alarms; the diagonal is guessing."""
    positive, negative = (counted.truth for counted in overall.answers)
    curve = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [point.false_alarms for point in overall.roc],
        "y": [point.hits for point in overall.roc],
        "line": {"color": RATERS, "width": 2},
        "marker": {"size": 6},
        "hovertemplate": "false alarms %{x:.1%}, hits %{y:.1%}<extra></extra>",
    }
    diagonal = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": {"color": HALF, "width": 1, "dash": "dash"}}
    return figure(
        [curve],
        {"range": UNIT, "tickformat": ".0%", "title": title(f"{negative} called {positive}"), "nticks": 5},
        {"range": UNIT, "tickformat": ".0%", "title": title(f"{positive} called {positive}"), "nticks": 5},
        height=300,
        shapes=[diagonal],
    )


def answers(counts: Sequence[Answers], form: Form) -> Figure:
    """How often each of the six answers was given to either truth."""
    names = list(QUESTIONS[form].answers)
    bars = [
        {
            "type": "bar",
            "name": counted.truth,
            "x": names,
            "y": list(counted.counts),
            "marker": {"color": f"var(--{colour})", "line": {"width": 0}},
            "hovertemplate": "%{x}: %{y:,} × %{fullData.name}<extra></extra>",
        }
        for counted, colour in zip(counts, (POSITIVE, NEGATIVE), strict=True)
    ]
    return figure(
        bars,
        {"type": "category"},
        {"rangemode": "tozero", "title": title("labels"), "nticks": 5},
        height=230,
        barmode="group",
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.15},
    )
