"""The recipe's JSON Schema, for editors. A test keeps `configs/recipe.schema.json` equal to it."""

from __future__ import annotations

from typing import Any

from toolchain.recipe.schema import Recipe


def recipe_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe file.

    It describes one file, and a file may leave to its imports whatever but `schema`: so nothing else is
    required here, and `imports` is a property although a composed recipe has none.
    """
    schema = _tidy(Recipe.model_json_schema())
    imports = {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "description": "Recipe files to build on, relative to this one. Later ones win over earlier ones, "
        "this file over all; mappings merge, lists are replaced.",
    }
    first = {"schema": schema["properties"].pop("schema"), "imports": imports}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmbuild recipe",
        **schema,
        "properties": first | schema["properties"],
        "required": ["schema"],
    }


def _tidy(schema: Any) -> Any:
    """Without the titles that pydantic derives from names, and without `required`."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _tidy(inner) for name, inner in value.items()}
        if key in ("properties", "$defs")
        else _tidy(value)
        for key, value in schema.items()
        if key not in ("title", "required")
    }
