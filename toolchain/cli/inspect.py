"""`llmbuild inspect`: what is in an artifact or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolchain.cli.common import JsonOption, emit, path_argument, table, verb

if TYPE_CHECKING:
    from toolchain.pipeline.artifact import Artifact
    from toolchain.pipeline.inspect import CheckpointFacts


@verb
def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="An artifact, or a directory with a model.", parser=path_argument),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare its sha256.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what an artifact or a checkpoint holds: stages, layers, formats, sizes.

    Example: llmbuild inspect artifacts/demo-int4
    """
    from toolchain.errors import UsageError
    from toolchain.pipeline.artifact import Artifact
    from toolchain.pipeline.inspect import inspect_checkpoint, inspect_path

    found = inspect_path(path)
    if isinstance(found, Artifact):
        if verify:
            found.verify()
        checkpoint = (
            inspect_checkpoint(found.dir("quantize")) if "quantize" in found.manifest.stages else None
        )
        if json:
            emit(_artifact_json(found) | {"checkpoint": checkpoint and checkpoint_json(checkpoint)})
            return
        _print_artifact(found)
        if verify:
            typer.echo("every file is what was published\n")
        if checkpoint:
            print_checkpoint(checkpoint)
        return
    if verify:
        raise UsageError("only an artifact has digests to verify", where=str(path))
    if json:
        emit(checkpoint_json(found))
    else:
        print_checkpoint(found)


def _artifact_json(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "name": manifest.name,
        "created": manifest.created,
        "gates": manifest.gates,
        "report": artifact.report,
        "stages": [entry.record.to_json() for entry in manifest.stages.values()],
        "bytes": sum(entry.size for entry in manifest.files.values()),
    }


def checkpoint_json(facts: CheckpointFacts) -> dict[str, Any]:
    """A checkpoint as JSON values."""
    return {
        "path": facts.path,
        "architecture": facts.architecture,
        "quantization": facts.quantization,
        "bytes": facts.nbytes,
        "tensors": [vars(row) for row in facts.rows],
    }


def _print_artifact(artifact: Artifact) -> None:
    from toolchain.plan.memory import human_bytes

    manifest = artifact.manifest
    rows = []
    for name, entry in manifest.stages.items():
        size = sum(file.size for path, file in manifest.files.items() if path.startswith(f"{name}/"))
        tools = ", ".join(f"{tool} {version}" for tool, version in entry.record.tools.items())
        peak = human_bytes(entry.record.peak_memory)
        rows.append(
            [
                name,
                human_bytes(size),
                f"{entry.record.seconds:.1f} s",
                peak,
                tools,
                _facts(entry.record.facts),
            ]
        )
    table(
        ["stage", ">size", ">time", ">peak memory", "tools", "facts"],
        rows,
        title=f"{manifest.name}, {manifest.created}",
    )
    if artifact.report is not None:
        typer.echo(f"\nreport: {artifact.report}\n")


def _facts(facts: Mapping[str, Any]) -> str:
    """A stage's facts that are single values; digests shortened."""
    single = {name: value for name, value in facts.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{name} {str(value)[:24]}" for name, value in single.items())


def print_checkpoint(facts: CheckpointFacts) -> None:
    """What a checkpoint holds, as tables."""
    from toolchain.plan.memory import human_bytes

    described = facts.quantization
    algo = described.get("quant_algo") or described.get("quant_method") or "unquantized"
    form = f" in the form {described['format']}" if "format" in described else ""
    cache = described.get("kv_cache_quant_algo")
    size = human_bytes(facts.nbytes)
    title = f"{facts.architecture}, {algo}{form}{f', KV cache {cache}' if cache else ''}, {size}"
    if "unreadable" in described:
        typer.echo(f"{described['unreadable']}\n")
    if schemes := described.get("schemes"):
        rows = [
            [
                str(scheme["linears"]),
                scheme["quant_algo"],
                str(scheme["bits"]),
                str(scheme["group_size"] or "none"),
                "yes" if scheme["zero_point"] else "no",
                "scattered" if scheme["act_order"] else "consecutive",
            ]
            for scheme in schemes
        ]
        columns = [">linears", "algorithm", ">bits", ">group size", "zero points", "channels of a group"]
        table(columns, rows, title=title)
        typer.echo()
        title = ""
    rows = [
        [row.name, str(row.count), row.dtype, " x ".join(map(str, row.shape)), human_bytes(row.nbytes)]
        for row in facts.rows
    ]
    columns = ["tensor", ">count", "dtype", "shape", ">size"]
    table(columns, rows, title=title)
