"""`llmbuild show`: a recipe as the build will see it."""

from __future__ import annotations

import typer

from toolchain.cli.common import JsonOption, RecipeArgument, SetOption, emit, find_recipe, verb


@verb
def show(recipe: RecipeArgument, set_: SetOption = None, json: JsonOption = False) -> None:
    """Print the resolved recipe: imports merged, overrides applied, defaults filled in.

    Example: llmbuild show demo-int4 --set engine.precision=exact
    """
    from toolchain.recipe import dump_recipe, load_recipe

    loaded = load_recipe(find_recipe(recipe), set_ or [])
    if json:
        emit(loaded.model_dump(mode="json", by_alias=True))
    else:
        typer.echo(dump_recipe(loaded), nl=False)
