"""`llmbuild schema`: the recipe's JSON Schema, for editors and CI."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, verb


@verb
def schema(
    write: Annotated[Path | None, typer.Option(help="Write it to this file instead of stdout.")] = None,
    check: Annotated[Path | None, typer.Option(help="Fail if this file is not the current schema.")] = None,
    json: JsonOption = False,
) -> None:
    """Print the JSON Schema of recipes (it is JSON with and without --json).

    Example: llmbuild schema --check configs/recipe.schema.json
    """
    from toolchain.errors import UsageError, file_error
    from toolchain.recipe import recipe_json_schema

    text = json_module.dumps(recipe_json_schema(), indent=2) + "\n"
    try:
        if check is not None and check.read_bytes() != text.encode():
            raise UsageError(
                "is not the current schema", where=str(check), fix=f"llmbuild schema --write {check}"
            )
        if write is not None:
            write.write_text(text, encoding="utf-8")
    except OSError as error:
        raise file_error(error, "write the schema" if check is None else "read the schema") from None
    if check is None and write is None:
        typer.echo(text, nl=False)
