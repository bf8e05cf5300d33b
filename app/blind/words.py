"""What raters are asked and told: the question, the six answers, the rubric; the same for people and programs."""

from dataclasses import dataclass

from app.blind.design import Form
from app.blind.draw import Truth
from app.blind.records import Practice

REASONS = (
    "I cannot read this language or script",
    "I know this latent from elsewhere",
    "I pressed by mistake",
    "other",
)
"""Why a trial is skipped."""

BREAK_AFTER = 50
"""Trials between two offers of a break."""


@dataclass(frozen=True)
class Question:
    """What a form asks; `answers` are those from 1 to 6."""

    text: str
    answers: tuple[str, str, str, str, str, str]
    low: str
    high: str


QUESTIONS: dict[Form, Question] = {
    "single": Question(
        "Was this latent found in a trained transformer, or in a randomised one?",
        ("surely random", "probably random", "perhaps random", "perhaps trained", "probably trained", "surely trained"),
        "random",
        "trained",
    ),
    "pair": Question(
        "One of these latents was found in a trained transformer, the other in a randomised one. Which is the trained"
        " one?",
        ("surely left", "probably left", "perhaps left", "perhaps right", "probably right", "surely right"),
        "left",
        "right",
    ),
}

TRUTHS: dict[Truth, str] = {
    "trained": "It is from the trained transformer.",
    "random": "It is from a randomised transformer.",
    "left": "The left one is from the trained transformer.",
    "right": "The right one is from the trained transformer.",
}

PRACTICE: dict[Practice, str] = {
    "again": "practice, and not counted: only the first session is, because whoever has been told the truth about"
    " latents remembers it.",
    "known": "practice, and not counted: you have met too many of its latents in another experiment, and whoever has"
    " been told the truth about latents remembers it.",
}
"""What a session is that does not count, and why, to whoever is in it."""

RUBRIC = (
    "A latent is one direction that a sparse autoencoder found in a transformer's activations. You see the texts on"
    " which it was most active. The stronger a token's colour, the more active the latent was on it, on its own scale.",
    "A latent of a trained transformer may follow a meaning, a grammatical role, a style, a place in the text, or one"
    " word. A latent of a randomised transformer can only follow what survives random weights.",
    "Ask: is there one thing that all coloured tokens share? Does it need the words around them to be seen? Would a"
    " transformer that never learnt anything have it too?",
    "In a few trials the text is shuffled word by word, so that nothing can be read: that counts as random.",
    "Answer with your first considered impression. There is no penalty for doubt: say how sure you are.",
)
"""Written instructions, in paragraphs. They say what can be told apart, not how the study's latents do differ."""


def right(form: Form, truth: Truth, answer: int) -> bool:
    """Whether an answer from 1 to 6 is on the side of the truth."""
    question = QUESTIONS[form]
    return (question.high if answer >= 4 else question.low) == truth
