"""The study file: YAML and changes to it come in, a `Study` that every stage reads goes out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from pipeline.config import SHORT, Study
from pipeline.errors import LineupError, shown

NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises: its own errors, and what its constructors meet, as in the date 2024-13-45."""


def load_study(path: Path, overrides: tuple[str, ...] = ()) -> Study:
    """Read a study file; `overrides` are `key.key=value` pairs with YAML values.

    Raises LineupError when the file is missing, is no YAML mapping, or does not make a study.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LineupError(f"Cannot read the study file '{path}': {error.strerror}. Give a YAML file.") from error
    except NO_YAML as error:
        raise LineupError(f"'{path}' is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise LineupError(f"'{path}' holds {type(data).__name__}, not keys with values: see studies/demo.yaml.")
    try:
        study = Study.model_validate(changed(data, overrides))
        json.dumps(study.model_dump(), ensure_ascii=False).encode()
    except ValidationError as error:
        raise LineupError(f"{path}: {'; '.join(_sentence(e, data) for e in error.errors())}") from error
    except UnicodeEncodeError as error:
        found = error.object[error.start : error.end]
        raise LineupError(f"{path}: {found!r} is half of a character (a surrogate), not text: remove it.") from error
    except ValueError as error:  # only an option may be so long a number
        raise LineupError(f"{path}: sae.options holds a number of very many digits: take a smaller one.") from error
    return study


def changed(data: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """The data with `key.key=value` pairs set, values in YAML; raises LineupError for what is no such pair."""
    for override in overrides:
        _set(data, override)
    return data


def _set(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise LineupError(f"--set takes key=value, such as sae.k=16, not '{override}'.")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise LineupError(f"--set {override}: '{parent}' is not a section.")
    try:
        data[last] = yaml.safe_load(value)
    except NO_YAML as error:
        raise LineupError(f"--set {override}: '{value}' is not a YAML value, such as 16 or [1, 3].") from error


def _sentence(error: Any, data: Mapping[str, Any]) -> str:
    where = ".".join(_place(error["loc"], data)) or "study"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"unknown key '{where}'; known keys: {', '.join(_known_keys(error['loc'][:-1]))}"
    return f"{where}: {message}" + ("" if isinstance(error["input"], dict) else f" (found {shown(error['input'])})")


def _place(location: Sequence[str | int], data: Mapping[str, Any]) -> list[str]:
    """Where an error is, as the file has it: `sae.k` where that is how it names its one SAE."""
    short = {many: one for one, many in SHORT.items() if one in data}
    if location and location[0] in short:
        location = [short[str(location[0])], *location[2:]]
    return [str(part) for part in location]


def _known_keys(path: Sequence[str | int]) -> list[str]:
    section: Any = Study
    for part in path:
        section = section.model_fields[part].annotation if isinstance(part, str) else get_args(section)[0]
    names = list(section.model_fields)
    return [*names, *SHORT] if section is Study else names
