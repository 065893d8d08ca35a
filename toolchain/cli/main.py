"""The `llmbuild` command: its verbs and nothing else.

Start-up stays in the blink of an eye: a verb module imports Typer only; what it needs to work it imports
inside its function.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from toolchain.cli import (
    bench,
    build,
    compat,
    doctor,
    evaluate,
    explain,
    export,
    generate,
    init,
    inspect,
    launch,
    ls,
    plan,
    schema,
    serve,
    show,
    store,
    validate,
    verify,
)

app = typer.Typer(
    name="llmbuild",
    help="From a Hugging Face model to a running Triton server, from one YAML recipe.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("llmbuild"))
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    pass


_PANELS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Recipes": (
        init.init,
        ls.ls,
        show.show,
        explain.explain,
        validate.validate,
        plan.plan,
        compat.compat,
    ),
    "Artifacts": (
        build.build,
        inspect.inspect,
        verify.verify,
        evaluate.eval,
        export.export,
        serve.serve,
        launch.launch,
        generate.generate,
        bench.bench,
    ),
    "Housekeeping": (doctor.doctor, schema.schema),
}
for panel, verbs in _PANELS.items():
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)
app.add_typer(store.app, name="store", rich_help_panel="Housekeeping")


def main() -> None:
    """Entry point of the console script."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):  # read when a library is imported
        os.environ.setdefault(name, "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path need not be UTF-8; what cannot be encoded is printed as JSON and Python escape it.
        sys.stdout.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
