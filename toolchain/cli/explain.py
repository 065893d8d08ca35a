"""`llmbuild explain`: one field of the recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, verb


@verb
def explain(
    field: Annotated[str, typer.Argument(help="A field or section; none lists the sections.")] = "",
    json: JsonOption = False,
) -> None:
    """Explain a field of the recipe: type, default, range, what it does.

    Example: llmbuild explain engine.stream_interval
    """
    from toolchain.recipe import explain_field

    explained = explain_field(field)
    if json:
        emit(explained)
    else:
        typer.echo(str(explained))
