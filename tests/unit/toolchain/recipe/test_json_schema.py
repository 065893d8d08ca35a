"""The committed JSON Schema is the current one, and agrees with the loader on the shipped recipes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from toolchain.recipe import load_recipe, recipe_json_schema, shipped_recipes
from toolchain.recipe.catalog import configs_dir

Fragment = dict[str, Any]
SCHEMA = recipe_json_schema()


def disagreements(value: Any, fragment: Fragment, where: str = "") -> list[str]:
    """Where `value` is not valid under `fragment`: the part of JSON Schema that the recipe's schema uses."""
    fragment = dict(fragment)
    found: list[str] = []
    if "$ref" in fragment:
        found += disagreements(value, SCHEMA["$defs"][fragment.pop("$ref").removeprefix("#/$defs/")], where)
    if "anyOf" in fragment and all(disagreements(value, form, where) for form in fragment.pop("anyOf")):
        found.append(f"{where}: no form fits")
    fragment.pop("anyOf", None)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    for key, wanted in fragment.items():
        match key:
            case "type" if wanted in ("integer", "number"):
                ok = number and (wanted == "number" or isinstance(value, int))
            case "type":
                ok = isinstance(value, types[wanted])
            case "enum":
                ok = value in wanted
            case "const":
                ok = value == wanted
            case "minimum":
                ok = not number or value >= wanted
            case "exclusiveMinimum":
                ok = not number or value > wanted
            case "maximum":
                ok = not number or value <= wanted
            case "minLength":
                ok = not isinstance(value, str) or len(value) >= wanted
            case "maxLength":
                ok = not isinstance(value, str) or len(value) <= wanted
            case "minItems":
                ok = not isinstance(value, list) or len(value) >= wanted
            case "maxItems":
                ok = not isinstance(value, list) or len(value) <= wanted
            case "pattern":
                ok = not isinstance(value, str) or re.search(wanted, value) is not None
            case "required":
                ok = not isinstance(value, dict) or set(wanted) <= set(value)
            case "additionalProperties":
                assert wanted is False
                ok = not isinstance(value, dict) or set(value) <= set(fragment["properties"])
            case "properties":
                ok = True
                for name in set(wanted) & set(value if isinstance(value, dict) else ()):
                    found += disagreements(value[name], wanted[name], f"{where}.{name}")
            case "items":
                ok = True
                for index, item in enumerate(value if isinstance(value, list) else ()):
                    found += disagreements(item, wanted, f"{where}[{index}]")
            case "$schema" | "$defs" | "title" | "description" | "default" | "patternErrorMessage":
                ok = True
            case _:
                raise AssertionError(f"the schema uses {key}, which this check does not know")
        if not ok:
            found.append(f"{where}: {key} {wanted}")
    return found


def test_the_committed_schema_is_current() -> None:
    committed = (configs_dir() / "recipe.schema.json").read_text("utf-8")
    assert committed == json.dumps(SCHEMA, indent=2) + "\n", "run `make schema`"


@pytest.mark.parametrize("name", [shipped.name for shipped in shipped_recipes()])
def test_shipped_recipes_are_valid_under_it(name: str) -> None:
    path = configs_dir() / f"{name}.yaml"
    assert disagreements(yaml.safe_load(path.read_text("utf-8")), SCHEMA) == []
    assert load_recipe(path).name == name


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("name: x", ": required"),
        ("{schema: 2}", ".schema: const"),
        ("{schema: 1, engin: {}}", ": additionalProperties"),
        ("{schema: 1, engine: {max_batch_size: 0}}", ".engine.max_batch_size: minimum"),
        ("{schema: 1, engine: {max_seq_len: x}}", ".engine.max_seq_len: no form fits"),
        ("{schema: 1, engine: {kv_cache: {paged: 1}}}", ".engine.kv_cache.paged: type"),
        ("{schema: 1, quantization: {method: awk}}", ".quantization.method: enum"),
        ("{schema: 1, quantization: {exclude: [1]}}", ".quantization.exclude[0]: type"),
        (
            "{schema: 1, quantization: {overrides: [{modules: '*', method: x}]}}",
            ".quantization.overrides[0].method: enum",
        ),
        (
            "{schema: 1, quantization: {search: {candidates: [awq]}}}",
            ".quantization.search: no form fits",
        ),
        ("{schema: 1, model: {source: a/b/c}}", ".model.source: pattern"),
        ("{schema: 1, imports: x.yaml}", ".imports: type"),
    ],
)
def test_it_refuses_what_the_loader_refuses(text: str, where: str) -> None:
    (found,) = disagreements(yaml.safe_load(text), SCHEMA)
    assert found.startswith(where)


def test_an_overlay_need_not_be_complete() -> None:
    assert disagreements({"schema": 1, "imports": ["a.yaml"], "model": {"revision": "v2"}}, SCHEMA) == []
