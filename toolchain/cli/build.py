"""`llmbuild build`: a recipe to an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolchain.cli.common import (
    JsonOption,
    RecipeArgument,
    SetOption,
    emit,
    find_recipe,
    path_argument,
    table,
    verb,
)

if TYPE_CHECKING:
    from toolchain.pipeline.build import Built


@verb
def build(
    recipe: RecipeArgument,
    set_: SetOption = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Stop after this stage: source, quantize, gate, engine or repository.", metavar="STAGE"
        ),
    ] = None,
    force: Annotated[
        list[str] | None, typer.Option(help="Run this stage even if its output is stored.", metavar="STAGE")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Directory that artifacts are left in.", metavar="PATH", parser=path_argument),
    ] = Path("artifacts"),
    json: JsonOption = False,
) -> None:
    """Build a recipe: quantize, make the engine, make the Triton repository; leave artifacts/NAME.

    What was built before is taken from the store; what was interrupted is resumed. A quantized model that
    does not pass the recipe's gates ends the build with exit code 4.

    Example: llmbuild build configs/demo-int4.yaml --until quantize
    """
    from toolchain.pipeline.build import build_recipe
    from toolchain.pipeline.events import show_progress
    from toolchain.recipe import load_recipe

    loaded = load_recipe(find_recipe(recipe), set_ or [])
    with show_progress(as_json=json) as progress:
        built = build_recipe(loaded, out=out, until=until, force=force or [], progress=progress)
    if json:
        emit(built.to_json())
    else:
        _print(built)


def _print(built: Built) -> None:
    from toolchain.plan.memory import human_bytes

    rows = []
    for result in built.results:
        size = sum(entry.size for entry in result.object.listing.files.values())
        seconds = f"{result.record.seconds:.1f} s" if result.outcome == "run" else "cached"
        rows.append([result.stage.name, seconds, human_bytes(size), result.object.digest[:12]])
    table(["stage", ">time", ">size", "sha256"], rows)
    typer.echo(f"\nartifact: {built.artifact}")
    if built.complete:
        flavours = {result.stage.config.get("flavour") for result in built.results}
        verb_ = "serve" if "openvino" in flavours else "launch"  # what a GPU serves starts elsewhere
        typer.echo(f"serve it: llmbuild {verb_} {built.artifact}")
