"""`llmbuild export`: a quantized checkpoint in another file form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, path_argument, verb


@verb
def export(
    path: Annotated[
        Path,
        typer.Argument(help="A quantized checkpoint of any form, or an artifact.", parser=path_argument),
    ],
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORM", help="modelopt, gptq, awq (AutoAWQ) or compressed-tensors."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new directory.", parser=path_argument)],
    json: JsonOption = False,
) -> None:
    """Write a quantized checkpoint in the file form that another tool reads.

    Not a bit of a weight changes on the way; what the form cannot hold is refused with the reason.

    Example: llmbuild export artifacts/demo-gptq --format compressed-tensors --out demo-ct
    """
    from toolchain.cli.inspect import checkpoint_json, print_checkpoint
    from toolchain.pipeline.events import show_progress
    from toolchain.pipeline.export import export_checkpoint

    with show_progress(as_json=json) as progress:
        exported = export_checkpoint(path, form, out, progress=progress)
    if json:
        emit(checkpoint_json(exported.facts))
    else:
        typer.echo(f"{exported.path}\n")
        print_checkpoint(exported.facts)
