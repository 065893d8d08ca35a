"""`load_recipe`: a YAML file, what it imports and the overrides of a command line, to one `Recipe`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from toolchain.errors import RecipeError
from toolchain.recipe.compose import Composer
from toolchain.recipe.diagnose import diagnose
from toolchain.recipe.document import Table, merge
from toolchain.recipe.schema import Recipe


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read, compose and validate a recipe. Nothing is written, and no file but recipes is looked at.

    Args:
        path: the recipe file. Relative paths in it, and in what it imports, are relative to the file that
            holds them; in the result they are absolute.
        overrides: `--set` arguments such as "engine.max_batch_size=8", applied in order over the files.

    Raises:
        RecipeError: with every problem that was found, each with file, line and column (or the override),
            the field, the reason and a remedy.
    """
    composer = Composer()
    tree = composer.file(Path(path))
    for argument in overrides:
        merged = merge(tree, composer.override(argument))
        tree = Table(tree.mark, merged.values, merged.keys)
    recipe, problems = diagnose(tree, complete=composer.complete)
    problems = composer.problems + problems
    if problems or recipe is None:
        raise RecipeError(problems)
    return recipe
