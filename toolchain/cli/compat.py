"""`llmbuild compat`: which quantization method, TensorRT-LLM release or engine runs where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, path_argument, table, verb


@verb
def compat(
    gpu: Annotated[str | None, typer.Option(help="Only what runs on this GPU, as h100.")] = None,
    flavour: Annotated[str | None, typer.Option(help="Only what this engine flavour runs.")] = None,
    releases: Annotated[
        bool, typer.Option("--releases", help="TensorRT-LLM's releases instead, and what belongs to each.")
    ] = False,
    engine: Annotated[
        Path | None,
        typer.Option(
            help="Whether these engines load: on --gpu, with --version or in --container, over --ranks.",
            parser=path_argument,
        ),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="With --engine: the TensorRT-LLM that is to run them.")
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="With --engine: the Triton container that is to run them, as 26.07.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(help="With --engine: processes that will be started.", min=1)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say which quantization methods and KV caches run on which engine flavour and GPU.

    `plan` and `build` judge a recipe by the same table, before any work. With --releases or --engine, say
    what belongs to TensorRT-LLM's releases, or whether engines load where they are going.

    Example: llmbuild compat --gpu a100-80g
    """
    from toolchain.plan.kernels import FLAVOURS, support

    if engine is not None:
        _engine(engine, version, container, gpu, ranks, json)
        return
    if version is not None or container is not None or ranks is not None:
        from toolchain.errors import UsageError

        raise UsageError(
            "--version, --container and --ranks say where engines are to run", fix="add --engine DIRECTORY"
        )
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


def _engine(
    directory: Path,
    version: str | None,
    container: str | None,
    gpu: str | None,
    ranks: int | None,
    json: bool,
) -> None:
    """What the engines are tied to, if they load where they are to run; else the error that says why not."""
    from toolchain.engine.tensorrt.compatible import require_loads, target

    facts = require_loads(directory, target(version=version, container=container, gpu=gpu, world_size=ranks))
    if json:
        emit(vars(facts))
        return
    rows = [
        ["TensorRT-LLM", facts.tensorrt_llm],
        ["TensorRT", facts.tensorrt or "not known"],
        ["GPU", f"sm_{facts.sm}, built on {facts.gpu}" if facts.sm else "not known: no stamp of llmbuild"],
        ["ranks", f"{facts.world_size} ({facts.tensor} tensor x {facts.pipeline} pipeline)"],
    ]
    table(["tied to", ""], rows, title=f"{directory} loads there, as far as is known")


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
