"""`llmbuild ls`: the recipes that come with llmbuild."""

from __future__ import annotations

from toolchain.cli.common import JsonOption, emit, table, verb


@verb
def ls(json: JsonOption = False) -> None:
    """List the shipped recipes; their names work wherever a recipe file does.

    Example: llmbuild ls
    """
    from toolchain.recipe import shipped_recipes

    recipes = shipped_recipes()
    if json:
        emit([{"name": r.name, "path": r.path, "description": r.description} for r in recipes])
    else:
        table(["recipe", "what it is for"], [[r.name, r.description] for r in recipes])
