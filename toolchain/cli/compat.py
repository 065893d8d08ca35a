"""`llmbuild compat`: which quantization method runs where."""

from __future__ import annotations

from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, table, verb


@verb
def compat(
    gpu: Annotated[str | None, typer.Option(help="Only what runs on this GPU, as h100.")] = None,
    flavour: Annotated[str | None, typer.Option(help="Only what this engine flavour runs.")] = None,
    releases: Annotated[
        bool, typer.Option("--releases", help="TensorRT-LLM's releases instead, and what belongs to each.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say which quantization methods and KV caches run on which engine flavour and GPU.

    `plan` and `build` judge a recipe by the same table, before any work.

    Example: llmbuild compat --gpu a100-80g
    """
    from toolchain.plan.kernels import FLAVOURS, support

    if releases:
        _releases(flavour, json)
        return
    found = support(gpu, flavour)
    if json:
        emit([vars(row) for row in found])
        return
    shown = [name for name in FLAVOURS if any(name in row.gpus for row in found)]
    rows = [
        [
            row.method,
            row.quant_algo or "",
            " ".join(map(str, row.groups)),
            *(_where(row.gpus.get(name), one=gpu is not None) for name in shown),
        ]
        for row in found
    ]
    table(["method", "stored as", "groups", *shown], rows)
    for row in found:
        if row.note:
            typer.echo(f"{row.method}: {row.note}")


def _releases(flavour: str | None, json: bool) -> None:
    """The table of releases, of those alone that work with `flavour` if it is given."""
    from toolchain.errors import UsageError
    from toolchain.plan.releases import releases

    if flavour not in (None, "tensorrt", "pytorch"):
        raise UsageError(
            f"TensorRT-LLM's releases have no flavour {flavour!r}", fix="use tensorrt or pytorch"
        )
    found = [known for known in releases() if flavour is None or flavour in known.flavours]
    if json:
        emit([vars(known) | {"image": known.image} for known in found])
        return
    columns = ["tensorrt", "cuda", "python", "modelopt", "torch", "transformers"]
    rows = [
        [
            known.version,
            " ".join(known.triton),
            *(getattr(known, name) or "" for name in columns),
            " ".join(known.flavours),
        ]
        for known in found
    ]
    table(["TensorRT-LLM", "Triton containers", *columns, "flavours"], rows)


def _where(gpus: tuple[str, ...] | None, *, one: bool) -> str:
    """The generations of the GPUs that run it; whether it runs at all, where one GPU was asked for."""
    from toolchain.data import load_table

    if gpus is None or one:
        return "-" if gpus is None else "yes"
    facts = load_table("gpus")
    return ", ".join(dict.fromkeys(facts[gpu]["generation"] for gpu in gpus)) or "any CPU"
