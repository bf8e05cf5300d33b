"""Wikipedia as prose: titles and plain paragraphs of a MediaWiki dump."""

import bz2
import re
from collections.abc import Callable, Iterator
from pathlib import Path

MIN_WORDS = 8
"""Words that a line needs to count as prose; headings, captions and list entries have fewer."""

BACK_MATTER = re.compile(
    r"^==[ ]*(?:see also|notes?|references|notes and references|footnotes|citations|sources|bibliography|works cited"
    r"|publications|further reading|external links)[ ]*==",
    re.IGNORECASE | re.MULTILINE,
)
"""The first of the sections that are lists of links."""

COMMENT_OR_NOTE = re.compile(
    r"<!--.*?-->|<ref[^>]*/>|<ref[ >].*?</ref>|<gallery.*?</gallery>", re.DOTALL | re.IGNORECASE
)
FORMULA = re.compile(r"<math.*?</math>", re.DOTALL)
TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
MEDIA = re.compile(r"\[\[(?:File|Image):(?:[^\[\]]|\[\[[^\[\]]*\]\]|\[[^\[\]]*\])*\]\]", re.IGNORECASE)
HOLE = "\ufffc"
"""Stands for what cannot be said in words: a paragraph with one is left out."""


def articles(dump: Path) -> Iterator[tuple[str, str]]:
    """The title and prose of every article; redirects are left out."""
    from gensim.corpora.wikicorpus import extract_pages  # takes seconds to import

    with bz2.open(dump) as stream:
        for title, markup, _ in extract_pages(stream):
            if not markup.lstrip().lower().startswith("#redirect"):
                yield title, prose(markup)


def prose(markup: str) -> str:
    """The sentences of an article, a paragraph or list entry a line, with a blank line between.

    Headings, captions, tables, footnotes, lists of links and paragraphs with formulas are left out.
    """
    from gensim.corpora.wikicorpus import filter_wiki

    text = COMMENT_OR_NOTE.sub("", markup)
    text = FORMULA.sub(HOLE, text)
    text = _spell_out_templates(text)
    text = MEDIA.sub("", _without_tables(text))
    text = BACK_MATTER.split(text, maxsplit=1)[0]
    lines = (_tidy(line) for line in filter_wiki(text).split("\n"))
    return "\n\n".join(line for line in lines if _is_prose(line))


def _spell_out_templates(text: str) -> str:
    """Replace templates, innermost first, by the words they show, most by nothing."""
    replaced = 1
    while replaced:
        text, replaced = TEMPLATE.subn(lambda found: _words(found[1]), text)
    return text


def _words(template: str) -> str:
    name, *arguments = (part.strip() for part in template.split("|"))
    shown = SHOWN.get(name.lower())
    return shown([argument for argument in arguments if "=" not in argument]) if shown else ""


def _first(arguments: list[str]) -> str:
    return "".join(arguments[:1])


def _second(arguments: list[str]) -> str:
    return "".join(arguments[1:2])


def _quantity(arguments: list[str]) -> str:
    """`1300|mi|km` is 1300 mi, and `10|to|20|km|mi` is 10 to 20 km."""
    is_range = arguments[1:2] and arguments[1] in {"-", "\u2013", "to", "and", "or", "x", "by"}
    return " ".join(arguments[: 4 if is_range else 2])


SHOWN: dict[str, Callable[[list[str]], str]] = {
    "convert": _quantity,
    "cvt": _quantity,
    "lang": _second,
    "transl": _second,
    "angbr": _first,
    "ipa": _first,
    "linktext": _first,
    "nihongo": _first,
    "nowrap": _first,
    "quote": _first,
    "vr": _first,
    "as of": lambda arguments: "as of " + _first(arguments),
    "chem": "".join,
    "mdashb": lambda _: "\u2014",
    "snd": lambda _: " \u2013 ",
    "val": lambda _: HOLE,
    "math": lambda _: HOLE,
    "mvar": lambda _: HOLE,
    "frac": lambda _: HOLE,
}
"""Templates that stand within sentences, and the words they show."""


def _without_tables(text: str) -> str:
    depth, kept = 0, []
    for line in text.split("\n"):
        start = line.lstrip(" :")
        depth += start.startswith("{|")
        if not depth:
            kept.append(line)
        elif start.startswith("|}") and not start.startswith("|}}"):
            depth -= 1
    return "\n".join(kept)


def _tidy(line: str) -> str:
    """Drop list marks and quotation marks of emphasis, and mend what taking templates out has torn."""
    line = re.sub(r"'{2,}", "", line.lstrip("*#:; ").replace("\xa0", " "))
    line = re.sub(r"\(\s*[,;:\s]+|\(\s+", "(", line)
    line = re.sub(r"[,;:\s]+\)", ")", line)
    line = line.replace("()", "")
    line = re.sub(r"\s+", " ", line)
    line = re.sub(r"(^|[.!?] )as of\b", r"\1As of", line)
    return re.sub(r" +([,.;:!?])(?=\s|$)", r"\1", line).strip()


def _is_prose(line: str) -> bool:
    ends = re.search(r"[.!?][\"'\u201d\u2019)\]]*$", line)
    return bool(ends) and HOLE not in line and len(line.split()) >= MIN_WORDS
