"""What every verb shares: options, how a result is printed, how an error ends the process."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from toolchain.errors import EXIT_INTERRUPTED, LlmbuildError, UsageError, file_error

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
    """Wrap a command so that an error becomes its message and exit code, never a traceback."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        signal.signal(signal.SIGTERM, _interrupt)
        as_json = bool(kwargs.get("json"))
        try:
            return function(*args, **kwargs)
        except LlmbuildError as error:
            _fail(error, as_json)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output went away (`llmbuild ls | head`); nothing is wrong.
            _abandon_stdout()
            raise typer.Exit(0) from None
        except OSError as error:
            if error.filename is not None:
                _fail(file_error(error, "use this path"), as_json)
            _abandon_stdout()  # a full disk, most likely
            _fail(LlmbuildError(f"input or output failed: {error.strerror or error}"), as_json=False)
        except UnicodeEncodeError as error:
            # Bytes of an argument that are no UTF-8 become lone surrogates, which nothing can encode.
            what = f"{error.object[max(0, error.start - 30) : error.end + 30]!a} is not UTF-8 text"
            _fail(UsageError(what, fix="give the argument in UTF-8"), as_json)

    return command


def _fail(error: LlmbuildError, as_json: bool) -> NoReturn:
    if as_json:
        emit({"error": error.to_json()})
    typer.echo(f"{_paint('error', error.kind)} {error}", err=True)
    raise typer.Exit(error.exit_code) from None


def _abandon_stdout() -> None:
    """If standard output cannot be written, drop what it still holds, and all that follows.

    Otherwise the interpreter would try again at its end, complain, and exit with a status of its own.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


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

    if title:
        typer.echo(title)  # not as Rich's title, which wraps at the width of the table
    width = None if sys.stdout.isatty() else 200  # no wrapping where programs read
    console = Console(width=width, markup=False, emoji=False)  # names are data
    drawn = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for column in columns:
        drawn.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        drawn.add_row(*row)
    with console.capture() as capture:
        console.print(drawn)
    typer.echo("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()))


def find_recipe(recipe: str) -> Path:
    """The file that a `RECIPE` argument means: a path as given, or a shipped recipe by name.

    Raises:
        UsageError: it is a directory, or a bare name that is neither a file nor a shipped recipe.
    """
    from difflib import get_close_matches

    from toolchain.recipe import shipped_recipes

    path = Path(recipe)
    shipped = {known.name: known.path for known in shipped_recipes()}
    try:
        if path.is_file():
            return path
        if recipe in shipped:  # even beside a directory of that name, as `build --out .` leaves it
            return shipped[recipe]
        is_directory = path.is_dir()
    except OSError as error:
        raise file_error(error, "read the recipe") from None
    if is_directory:
        inside = path / "recipe.yaml"
        raise UsageError(
            "this is a directory, not a recipe",
            where=recipe or "''",
            fix=f"name its recipe: {inside}" if inside.is_file() else "name a recipe file",
        )
    if path.suffix or "/" in recipe:
        return path
    near = get_close_matches(recipe, shipped, 1)
    raise UsageError(
        "there is no such file, and no shipped recipe of that name",
        where=ascii(recipe)[1:-1],
        fix=f"did you mean {near[0]}?" if near else "`llmbuild ls` lists the shipped recipes",
    )


def path_argument(text: str) -> Path:
    """Parser of a path argument: the empty text, which `Path` takes for `.`, is refused."""
    if not text:
        raise typer.BadParameter("it is empty")
    return Path(text)


def finite(value: float) -> float:
    """Callback of a number option: NaN and infinity, which no minimum or maximum stops, are refused."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value
