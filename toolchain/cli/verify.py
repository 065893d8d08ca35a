"""`llmbuild verify`: the ranks of a TensorRT-LLM checkpoint, run and compared with their source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from toolchain.cli.common import JsonOption, emit, path_argument, table, verb

if TYPE_CHECKING:
    from toolchain.engine.tensorrt.verify.result import Verification


@verb
def verify(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A TensorRT-LLM rank checkpoint, or an artifact with one.", parser=path_argument),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The checkpoint that it was made from; an artifact holds its own."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Run this text; default: 64 random tokens.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="IDS", help="Or run these tokens, as 1,15043,3186.")
    ] = None,
    backend: Annotated[
        Literal["auto", "gloo", "nccl"],
        typer.Option(help="gloo: on the CPU; nccl: a GPU for each rank; auto: nccl if there are enough."),
    ] = "auto",
    json: JsonOption = False,
) -> None:
    """Prove that rank files are their source: run them, tensor and pipeline parallel, and compare.

    Each rank is a process of its own that loads its own file, one layer at a time. No GPU is needed.

    Example: llmbuild verify ranks --source models/demo
    """
    from toolchain.errors import GateError, UsageError
    from toolchain.pipeline.events import show_progress
    from toolchain.pipeline.verify import verify_path

    if prompt is not None and tokens is not None:
        raise UsageError("give either --prompt or --tokens")
    with show_progress(as_json=json) as progress:
        found = verify_path(
            checkpoint,
            source=source,
            prompt=prompt,
            tokens=None if tokens is None else _ids(tokens),
            backend=backend,
            progress=progress,
        )
    if json:
        emit(found.to_json())
    else:
        _print(found)
    if found.problem is None:
        return
    if json:
        raise typer.Exit(GateError.exit_code)
    raise GateError(
        found.problem,
        where=str(checkpoint),
        why=f"more than {found.allowed.value:.2g} is allowed, since {found.allowed.why}",
        fix="; ".join(found.differences) or "convert the source again, and check that it is the right one",
    )


def _ids(text: str) -> list[int]:
    from toolchain.errors import UsageError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{text!r} is no list of token numbers", where="--tokens", fix="as 1,15043"
        ) from None


def _print(found: Verification) -> None:
    from toolchain.findings import grouped
    from toolchain.plan.memory import human_bytes

    limit = found.allowed.value
    rows = [["embedding", "0", _mark(found.embedding, limit), "", ""]]
    for layer in found.layers:
        halves = [_mark(error, limit) for _, error in layer.halves]
        rows.append([f"layer {layer.layer}", str(layer.stage), *halves, f"{layer.after:.1e}"])
    rows.append(["output", str(found.pipeline - 1), _mark(found.head, limit), "", ""])
    table(
        ["part", ">stage", ">attention", ">MLP", ">stream after it"],
        rows,
        title=f"{found.tensor * found.pipeline} ranks (tp {found.tensor} x pp {found.pipeline}) over "
        f"{found.backend}, {found.tokens} tokens; error of the worst channel, relative",
    )
    typer.echo(
        f"\nlogits: largest difference {found.max_logit_difference:.2g} (their standard deviation is "
        f"{found.logit_range:.2g}), same likeliest token {found.top1:.1%}"
    )
    typer.echo(f"tolerance {limit:.2g}: {found.allowed.why}")
    for finding in grouped(found.findings):
        typer.echo(str(finding))
    for difference in found.differences:
        typer.echo(f"config.json: {difference}")
    typer.echo(f"{found.seconds:.1f} s, largest process {human_bytes(found.peak_memory)}")
    if found.problem is None:
        typer.echo("the ranks are the source")


def _mark(error: float, limit: float) -> str:
    return f"{error:.1e}" + (" !" if error > limit else "")
