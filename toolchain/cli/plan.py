"""`llmbuild plan`: what a recipe needs, before any work."""

from __future__ import annotations

import sys
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
from toolchain.errors import LlmbuildError, combined

if TYPE_CHECKING:
    from toolchain.plan.effort import Measured
    from toolchain.plan.plan import Plan


@verb
def plan(
    recipe: RecipeArgument,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAMExCOUNT", help="Plan for these GPUs, e.g. h100 or h200x4."),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", parser=path_argument, help="Draw the memory of each rank."),
    ] = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Say what a recipe needs and whether it can work: memory of each rank, what fits, stages, which tools.

    Exits with 3 when it cannot work. Needs no GPU and no weights.

    Example: llmbuild plan configs/llama70b-int4.yaml --gpu h200x4
    """
    from toolchain.pipeline.tools import missing_tools
    from toolchain.plan.device import gpu_overrides
    from toolchain.plan.plan import make_plan
    from toolchain.recipe import load_recipe

    overrides = [*(set_ or []), *(gpu_overrides(gpu) if gpu is not None else [])]
    loaded = load_recipe(find_recipe(recipe), overrides)
    made = make_plan(loaded, _measured())
    missing = missing_tools(made.resolved)
    if svg is not None:
        from toolchain.report.memory import memory_svg

        svg.write_text(memory_svg(made), encoding="utf-8")
    if not json:
        _print(made)
        for error in missing:
            typer.echo(f"\nnot here: {error}")
        made.check()
        return
    emit(made.to_json() | {"missing_tools": [error.to_json() for error in missing]})
    if made.problems:  # which stand in the one JSON object that there is
        problem = combined(made.problems)
        typer.echo(f"{problem.kind} error: {problem}", err=True)
        raise typer.Exit(problem.exit_code)


def _measured() -> list[Measured]:
    """What earlier builds took here; nothing where there is no store to read."""
    from toolchain.pipeline.history import earlier_runs
    from toolchain.pipeline.store import Store

    try:
        return earlier_runs(Store.open())
    except LlmbuildError:
        return []


def _encodable(line: str) -> str:
    """The line, with ASCII for bars where standard output is no Unicode."""
    try:
        line.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return line.translate(str.maketrans("█▓▒·", "#+=."))
    return line


def _print(plan: Plan) -> None:
    from toolchain.report.plan import choice_rows, figure_rows, memory_lines, stage_rows

    table([plan.resolved.name, ""], figure_rows(plan))
    for line in memory_lines(plan):
        typer.echo(_encodable(line))
    columns = ["stage", ">host memory", ">GPU memory", ">disk", ">time", "by"]
    table(columns, stage_rows(plan), title="a build on this machine:")
    if plan.choices:
        columns = [">", "method", "tensor x pipeline", ">weights on a rank", ">sequences", "why"]
        table(columns, choice_rows(plan), title="auto, the best first; the plan is that of 1:")
    for note in plan.notes:
        typer.echo(f"note: {note}")
