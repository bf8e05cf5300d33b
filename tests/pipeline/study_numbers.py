"""Every number that a study file may hold, out of the schema of its sections: a new key is among them by itself."""

from typing import Any

from pipeline.config import Study


def numbers(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    """The schema of every number of a study file, by its key; `[]` stands for an item of a list."""
    schema = schema | definitions.get(schema.get("$ref", "").rpartition("/")[2], {})
    if schema.get("type") in ("integer", "number"):
        return {path: schema}
    found = {}
    for name, part in schema.get("properties", {}).items():
        found |= numbers(part, definitions, f"{path}.{name}".removeprefix("."))
    for part in [*schema.get("anyOf", []), *schema.get("allOf", [])]:
        found |= numbers(part, definitions, path)
    return found | (numbers(schema["items"], definitions, f"{path}[]") if "items" in schema else {})


SCHEMA = Study.model_json_schema()
NUMBERS = numbers(SCHEMA, SCHEMA["$defs"])


def override(key: str, value: object) -> str:
    """What `--set` takes for it; `model` and `sae` are short for lists of one."""
    name = key.replace("s[].", ".")
    return f"{name}={value}" if name == name.removesuffix("[]") else f"{name.removesuffix('[]')}=[{value}]"
