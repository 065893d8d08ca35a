"""Recipes: the schema, loading with positions, JSON Schema, and the list of shipped ones.

Names resolve on first use: `shipped_recipes` must not cost the import of pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.recipe.catalog import ShippedRecipe, shipped_recipes
    from toolchain.recipe.dump import dump_recipe
    from toolchain.recipe.fields import FieldHelp, explain_field
    from toolchain.recipe.json_schema import recipe_json_schema
    from toolchain.recipe.load import load_recipe
    from toolchain.recipe.schema import Recipe

_HOMES = {
    "FieldHelp": "fields",
    "Recipe": "schema",
    "ShippedRecipe": "catalog",
    "dump_recipe": "dump",
    "explain_field": "fields",
    "load_recipe": "load",
    "recipe_json_schema": "json_schema",
    "shipped_recipes": "catalog",
}

__all__ = [
    "FieldHelp",
    "Recipe",
    "ShippedRecipe",
    "dump_recipe",
    "explain_field",
    "load_recipe",
    "recipe_json_schema",
    "shipped_recipes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
