"""What a field accepts, in words. Read off the JSON Schema, so that help, errors and editors agree."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from textwrap import fill, indent
from typing import Any

from toolchain.errors import UsageError
from toolchain.recipe.marks import quoted
from toolchain.recipe.schema import Recipe

Fragment = dict[str, Any]

_PLURALS = {"string": "texts", "integer": "whole numbers", "number": "numbers"}


@lru_cache(maxsize=1)
def _schema() -> Fragment:
    return Recipe.model_json_schema()


def fragment_at(path: tuple[str | int, ...]) -> Fragment | None:
    """The JSON Schema of the field at `path` with references resolved, or None where there is no such field.

    A nullable field gives its other form plus `"nullable": True`, and one that takes a word in place of its
    value that form plus `"words": [...]`. The fields of a list's items may be named without an index, as in
    `quantization.overrides.method`.
    """
    fragment: Fragment | None = _resolve(_schema())
    for step in path:
        assert fragment is not None
        if isinstance(step, str) and "items" in fragment:  # a field of each of the list's items
            fragment = _resolve(fragment["items"])
        inner = fragment.get("items") if isinstance(step, int) else fragment.get("properties", {}).get(step)
        if inner is None:
            return None
        fragment = _resolve(inner)
    return fragment


def _resolve(fragment: Fragment) -> Fragment:
    if forms := fragment.get("anyOf"):
        first, *others = (form for form in forms if form != {"type": "null"})
        fragment = {**first, **fragment}
        if others:
            fragment["words"] = [form["const"] for form in others]
        if {"type": "null"} in forms:
            fragment["nullable"] = True
    if "$ref" in fragment:
        target = _schema()["$defs"][fragment["$ref"].rsplit("/", 1)[1]]
        fragment = {**target, **fragment}
    return fragment


def expectation(fragment: Fragment) -> str:
    """What a field accepts, as in "a whole number from 1 to 64, or null"."""
    others = [*fragment.get("words", ()), *(["null"] if fragment.get("nullable") else [])]
    return _form(fragment) + (f", or {' or '.join(others)}" if others else "")


def _form(fragment: Fragment) -> str:
    if "properties" in fragment:
        return "a mapping with the fields " + ", ".join(fragment["properties"])
    if "enum" in fragment:
        return "one of " + ", ".join(str(choice) for choice in fragment["enum"])
    if "const" in fragment:
        return str(fragment["const"])
    kind = fragment["type"]
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(fragment)
    if kind == "array":
        items = _resolve(fragment["items"])
        if "properties" in items:
            return "a list of mappings with the fields " + ", ".join(items["properties"])
        if "enum" in items:
            few = fragment.get("minItems")
            return f"a list of {f'at least {few} ' if few else ''}of {', '.join(map(str, items['enum']))}"
        return "a list of " + _PLURALS.get(items["type"], "lists")
    if kind == "string":
        return str(fragment.get("patternErrorMessage", "text"))
    return {"boolean": "true or false", "null": "null", "object": "a mapping"}[kind]


def _range(fragment: Fragment) -> str:
    low, above, high = (fragment.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f" from {low} to {high}"
    bounds = [f"above {above:g}"] if above is not None else []
    bounds += [f"of at least {low}"] if low is not None else []
    bounds += [f"at most {high:g}"] if high is not None else []
    return " " + " and ".join(bounds) if bounds else ""


def nearest(name: str, candidates: list[str]) -> str | None:
    """The candidate most like `name`, else one that begins with it, or None."""
    name = name.lower().replace("-", "_")
    begin = [candidate for candidate in candidates if len(name) > 1 and candidate.startswith(name)]
    return next(iter(get_close_matches(name, candidates, 1, cutoff=0.6) or begin), None)


def all_paths() -> list[str]:
    """Every field of a recipe as a dotted path, sections before their fields."""

    def below(prefix: str, fragment: Fragment) -> list[str]:
        found = []
        for name, inner in _properties(fragment).items():
            found += [prefix + name, *below(f"{prefix}{name}.", _resolve(inner))]
        return found

    return below("", _schema())


def _properties(fragment: Fragment) -> Fragment:
    """The fields of a section, or of each item of a list of mappings."""
    inner = _resolve(fragment["items"]) if "items" in fragment else fragment
    return dict(inner.get("properties", {}))


@dataclass(frozen=True)
class FieldHelp:
    """What `llmbuild explain` prints of a field.

    Args:
        path: dotted path; empty for the recipe as a whole.
        type: what the field accepts, in words.
        default: its default as YAML, "required", or None for a section.
        description: what it does, and when to change it.
        fields: a section's fields, in order; empty for anything else.
    """

    path: str
    type: str
    default: str | None
    description: str
    fields: tuple[FieldHelp, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path or 'recipe'}: {self.type}{self._default()}", "", fill(self.description, 100)]
        for field in self.fields:
            lines += [
                "",
                f"{field.path}: {field.type}{field._default()}",
                indent(fill(field.description, 96), "    "),
            ]
        return "\n".join(lines)

    def _default(self) -> str:
        if self.default is None or self.default == "required":
            return "; required" if self.default else ""
        return f"; default {self.default}"


def explain_field(path: str = "") -> FieldHelp:
    """Explain the field at a dotted path, a section with all fields in it; "" explains the recipe.

    Raises:
        UsageError: there is no such field.
    """
    steps = tuple(path.split(".")) if path else ()
    fragment = fragment_at(steps)
    if fragment is None:
        siblings = [known for known in all_paths() if known.rpartition(".")[0] == path.rpartition(".")[0]]
        namesakes = [known for known in all_paths() if known.rpartition(".")[2] == steps[-1]]
        near = nearest(path, siblings) or next(iter(namesakes), None) or nearest(path, all_paths())
        raise UsageError(
            f"a recipe has no field {quoted(path)}",
            fix=f"llmbuild explain {near or 'name, or engine, or any other field'}",
        )
    parent = fragment_at(steps[:-1]) or {}
    parent = _resolve(parent["items"]) if "items" in parent else parent
    required = bool(steps) and steps[-1] in parent.get("required", ())
    return _help(path, fragment, required)


def _help(path: str, fragment: Fragment, required: bool) -> FieldHelp:
    inside = _resolve(fragment["items"]) if "items" in fragment else fragment
    fields = tuple(
        _help(f"{path}.{name}".lstrip("."), _resolve(inner), name in inside.get("required", ()))
        for name, inner in inside.get("properties", {}).items()
    )
    default = "required" if required else as_yaml(fragment["default"]) if "default" in fragment else None
    form = (
        "a section" + (", or null" if fragment.get("nullable") else "")
        if "properties" in fragment
        else expectation(fragment)
    )
    return FieldHelp(path, form, default, fragment.get("description", ""), fields)


def as_yaml(value: object) -> str:
    """A default value as one would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {as_yaml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    return str(value)
