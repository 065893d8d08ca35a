"""`llmbuild init`: a recipe of one's own, begun from a shipped one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, verb


@verb
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("recipe.yaml"),
    like: Annotated[
        str, typer.Option(help="The shipped recipe to begin from (see `llmbuild ls`).")
    ] = "demo-int4",
    model: Annotated[str | None, typer.Option(help="The model's hub id or directory.")] = None,
    json: JsonOption = False,
) -> None:
    """Write a commented recipe to begin from. Never overwrites a file.

    Example: llmbuild init my.yaml --like llama8b-fp8 --model ./my-llama
    """
    from toolchain.recipe.starter import write_starter

    write_starter(path, like, model)
    if json:
        emit({"written": path})
    else:
        typer.echo(f"wrote {path}; next: llmbuild plan {path}")
