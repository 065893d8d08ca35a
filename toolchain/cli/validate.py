"""`llmbuild validate`: every problem of a recipe at once, with file, line and column."""

from __future__ import annotations

import typer

from toolchain.cli.common import JsonOption, RecipeArgument, SetOption, emit, find_recipe, verb


@verb
def validate(recipe: RecipeArgument, set_: SetOption = None, json: JsonOption = False) -> None:
    """Check a recipe without doing anything: all problems at once, with their places.

    Example: llmbuild validate configs/llama70b-int4.yaml --set parallelism.tensor=8
    """
    from toolchain.recipe import load_recipe

    loaded = load_recipe(find_recipe(recipe), set_ or [])
    if json:
        emit({"valid": True, "recipe": loaded.name})
    else:
        typer.echo(f"{recipe}: valid ({loaded.name})")
