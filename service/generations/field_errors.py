"""From pydantic's errors to ours: a pointer, what is allowed with its unit, never what was sent."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from service.contract.errors import FieldError
from service.generations.request import FOREIGN_FIELDS, ONE_KIND, GenerationRequest

#: Errors told at once; a body of nothing but errors gets no longer answer.
MAX_ERRORS = 32
#: Characters of a caller's own field name that are repeated.
_MAX_NAME = 64

Schema = dict[str, Any]


def pointer(*parts: str | int) -> str:
    """Return the JSON pointer (RFC 6901) of a path; names that the caller chose are cut."""
    return "".join("/" + str(part)[:_MAX_NAME].replace("~", "~0").replace("/", "~1") for part in parts)


def nearest(name: str, names: Sequence[str]) -> str:
    """Return " Did you mean a or b?" with the most similar names, or nothing."""
    found = difflib.get_close_matches(name.lower()[:_MAX_NAME], names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def field_errors(err: ValidationError, of: type[BaseModel] = GenerationRequest) -> list[FieldError]:
    """Return one error per wrong field of a request of this kind, at most `MAX_ERRORS`."""
    whole = _schema(of)
    found: dict[str, FieldError] = {}
    raw = err.errors(include_url=False, include_input=False)
    unknown_in = {tuple(each["loc"][:-1]) for each in raw if each["type"] == "extra_forbidden"}
    for each in raw:
        loc = tuple(part for part in each["loc"] if part != "[key]")
        # Of {"path": …} only the unknown name is told, not also the missing ones.
        if each["type"] == "missing" and loc[:-1] and loc[:-1] in unknown_in:
            continue
        where = pointer(*loc)
        found.setdefault(where, FieldError(where, _message(whole, each["type"], loc, is_key="[key]" in each["loc"])))
        if len(found) == MAX_ERRORS:
            break
    return list(found.values())


@cache
def _schema(of: type[BaseModel]) -> Schema:
    return of.model_json_schema()


def _message(whole: Schema, kind: str, loc: tuple[str | int, ...], *, is_key: bool) -> str:
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        name = str(loc[-1])
        known = FOREIGN_FIELDS.get(name)
        siblings = list(_properties(whole, loc[:-1]))
        return f"is not a field of this request{f': {known}' if known else nearest(name, siblings)}"
    if kind == ONE_KIND:
        return f"must have exactly one of the fields {', '.join(_properties(whole, loc))}"
    if is_key:
        return "a label's name must have 1 to 63 characters of A-Z a-z 0-9 . _ - and begin with a letter or digit"
    if loc[0] == "labels" and len(loc) > 1:
        return "a label's value must be text of at most 256 characters without control characters"
    # What is wrong with an item is told of its list.
    return f"must be {_expected(whole, loc[:-1] if loc and isinstance(loc[-1], int) else loc)}"


def _expected(whole: Schema, loc: Sequence[str | int]) -> str:  # noqa: C901 - one case per kind of schema
    """Say what a field of the request takes: its type, range and unit, from its own schema."""
    properties = _properties(whole, loc[:-1])
    schema = properties.get(str(loc[-1]), {})
    options = cast("list[Schema]", schema.get("anyOf", [schema]))
    option = _resolved(whole, next((each for each in options if each.get("type") != "null"), schema))
    unit = f" {schema['x-unit']}" if "x-unit" in schema else ""
    match option:
        case {"enum": names}:
            text = f"one of {', '.join(names)}"
        case {"type": "integer"}:
            text = f"a whole number, {option['minimum']} to {option['maximum']}{unit}"
        case {"type": "number", "exclusiveMinimum": low}:
            text = f"a number above {low:g}, up to {option['maximum']:g}{unit}"
        case {"type": "number"}:
            text = f"a number, {option['minimum']:g} to {option['maximum']:g}{unit}"
        case {"type": "boolean"}:
            text = "true or false"
        case {"type": "string", "maxLength": most}:
            text = f"text of {option.get('minLength', 0)} to {most}{unit or ' characters'}"
        case {"type": "string", "pattern": _, "description": form}:
            text = form[:1].lower() + form[1:].rstrip(".")
        case {"type": "string"}:
            text = "text that is not empty"
        case {"type": "array", "items": {"enum": names}}:
            text = f"a list of {option.get('minItems', 0)} to {option['maxItems']} of {', '.join(names)}"
        case {"maxProperties": most}:
            text = f"an object of at most {most} pairs of text"
        case _:
            text = f"an object with the fields {', '.join(option.get('properties', {}))}"
    return text


def _properties(whole: Schema, path: Sequence[str | int]) -> Mapping[str, Schema]:
    """Return the fields of the object at `path`, by name."""
    schema = whole
    for part in path:
        options = cast("list[Schema]", schema.get("properties", {}).get(str(part), {}).get("anyOf", [{}]))
        schema = _resolved(whole, options[0])
    return cast("Mapping[str, Schema]", schema.get("properties", {}))


def _resolved(whole: Schema, schema: Schema) -> Schema:
    reference = schema.get("$ref")
    return whole["$defs"][reference.rpartition("/")[2]] if reference else schema
