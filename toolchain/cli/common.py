"""What every verb shares: options, how a result is printed, how an error ends the process."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from toolchain.errors import EXIT_INTERRUPTED, LlmbuildError

P = ParamSpec("P")
R = TypeVar("R")

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped recipe (see `llmbuild ls`).")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one field, e.g. engine.max_batch_size=16."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that an `LlmbuildError` becomes its message and exit code, never a traceback."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return function(*args, **kwargs)
        except LlmbuildError as error:
            if kwargs.get("json"):
                emit({"error": error.to_json()})
            typer.echo(f"{_paint('error', error.kind)} {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output went away (`llmbuild ls | head`); nothing is wrong.
            sys.stderr.close()
            raise typer.Exit(0) from None

    return command


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _paint(word: str, kind: str) -> str:
    label = word if kind == "error" else f"{kind} {word}"
    return typer.style(f"{label}:", fg=typer.colors.RED, bold=True) if sys.stderr.isatty() else f"{label}:"


def emit(result: Any) -> None:
    """Print a JSON-able result to stdout."""
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    """Paths and sets, which `json` does not know."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"not JSON-able: {type(value).__name__}")


def table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """Print a table to stdout: drawn on a terminal, aligned plain text elsewhere.

    A column whose header starts with ">" is right-aligned.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=200)  # no wrapping where programs read
    drawn = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        pad_edge=False,
    )
    for column in columns:
        drawn.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        drawn.add_row(*row)
    with console.capture() as capture:
        console.print(drawn)
    typer.echo("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()))


def find_recipe(recipe: str) -> Path:
    """The file that a `RECIPE` argument means: a path as given, or a shipped recipe by name."""
    from toolchain.recipe import shipped_recipes

    path = Path(recipe)
    if path.exists() or path.suffix in {".yaml", ".yml"} or "/" in recipe:
        return path
    for shipped in shipped_recipes():
        if shipped.name == recipe:
            return shipped.path
    return path
