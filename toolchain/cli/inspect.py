"""`llmbuild inspect`: what a directory is, ours or somebody else's, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolchain.cli.common import JsonOption, emit, path_argument, table, verb

if TYPE_CHECKING:
    from toolchain.findings import Finding
    from toolchain.pipeline.artifact import Artifact
    from toolchain.pipeline.described import Described
    from toolchain.pipeline.inspect import CheckpointFacts
    from toolchain.plan.runs import Runner


@verb
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="An artifact, a model, a TensorRT-LLM checkpoint or engine directory, a Triton repository.",
            parser=path_argument,
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read every byte: compare an artifact's sha256, look for NaN in rank files."
        ),
    ] = False,
    target: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The TensorRT-LLM that is to build or run it.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what a directory is and holds, what is wrong with it, and which container runs it.

    Exit code 2 when an error is found.

    Example: llmbuild inspect artifacts/demo-int4
    """
    from toolchain.errors import ModelError, UsageError
    from toolchain.findings import errors
    from toolchain.pipeline.artifact import Artifact
    from toolchain.pipeline.described import Described
    from toolchain.pipeline.inspect import inspect_checkpoint, inspect_path

    found = inspect_path(path, target=target, weights=verify)
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
    if verify and not (isinstance(found, Described) and found.is_ranks):
        raise UsageError(
            "only an artifact has digests to verify, and rank files weights to read", where=str(path)
        )
    if isinstance(found, Described):
        emit(found.to_json()) if json else _print_described(found)
    else:
        emit(checkpoint_json(found)) if json else print_checkpoint(found)
    if errors(found.findings):
        raise typer.Exit(ModelError.exit_code)


def _print_described(found: Described) -> None:
    from toolchain.plan.memory import human_bytes

    rows = [[name.replace("_", " "), str(value)] for name, value in found.facts.items()]
    table(["", ""], rows, title=f"{found.path}: {found.kind}")
    if found.parts:
        typer.echo()
        columns = list(found.parts[0])
        table(
            [_column(name, found.parts[0][name]) for name in columns],
            [
                [human_bytes(part[name]) if name == "bytes" else str(part[name]) for name in columns]
                for part in found.parts
            ],
        )
    _print_findings(found.findings, found.runners)


def _column(name: str, value: object) -> str:
    title = "size" if name == "bytes" else name.replace("_", " ")
    return f">{title}" if isinstance(value, int) and not isinstance(value, bool) else title


def _print_findings(findings: Sequence[Finding], runners: Sequence[Runner]) -> None:
    """What is wrong, and what runs it."""
    from toolchain.findings import grouped

    if runners:
        rows = [
            [runner.flavour, runner.version, runner.container, _generations(runner.gpus), runner.note]
            for runner in runners
        ]
        typer.echo()
        table(["runs on", "TensorRT-LLM", "container", "GPUs", ""], rows)
    typer.echo()
    for finding in grouped(findings):
        typer.echo(str(finding))
    if not findings:
        typer.echo("nothing is wrong with it")


def _generations(gpus: Sequence[str]) -> str:
    from toolchain.data import load_table

    known = load_table("gpus")
    return ", ".join(dict.fromkeys(known[gpu]["generation"] if gpu in known else gpu for gpu in gpus))


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
        "findings": [finding.to_json() for finding in facts.findings],
        "runs_on": [asdict(runner) for runner in facts.runners],
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
    _print_findings(facts.findings, facts.runners)
