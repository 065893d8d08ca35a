"""`llmbuild validate`: every problem of a recipe at once, with file, line and column."""

from __future__ import annotations

from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, SetOption, emit, find_recipe, verb


@verb
def validate(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files, or names of shipped recipes.")],
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Check recipes without doing anything: all problems at once, with their places.

    Example: llmbuild validate configs/llama70b-int4.yaml --set parallelism.tensor=8
    """
    from toolchain.errors import LlmbuildError, RecipeError, UsageError
    from toolchain.recipe import load_recipe

    valid: list[str] = []
    problems: list[LlmbuildError] = []
    for recipe in recipes:
        try:
            load_recipe(find_recipe(recipe), set_ or [])
            valid.append(recipe)
        except RecipeError as error:
            problems += error.problems
        except UsageError as error:
            problems.append(error)
    if not json:
        for recipe in valid:
            typer.echo(f"{recipe}: valid")
    if problems:
        raise RecipeError(problems)
    if json:
        emit({"valid": valid})
