"""`llmbuild eval`: how far a quantized checkpoint is from its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from toolchain.cli.common import JsonOption, emit, path_argument, table, verb

if TYPE_CHECKING:
    from toolchain.gate.result import Evaluation


@verb
def eval(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Checkpoint directories or artifacts, of one source.", parser=path_argument),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            metavar="DATASET",
            help="Held-out text: file:PATH (text, .jsonl, .json, .parquet), or hf:OWNER/NAME.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model it was made from; an artifact's recipe names it."),
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Of a Hub data set: what its card calls a config.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a Hub data set.")] = None,
    revision: Annotated[str, typer.Option(help="Of a Hub data set: branch, tag or commit.")] = "main",
    column: Annotated[
        str | None, typer.Option(help="Key or column with the text or chat; default: text, or messages.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens in a window; default: 2048, or the model's context.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window; default: no overlap.")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Take this many windows; default: the whole text.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU if there is one.")
    ] = "auto",
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Do not round activations and KV cache as the engine will.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure quantized checkpoints against their source: perplexity, KL divergence, error by layer.

    Sums are in float32, one decoder layer in memory at a time. Several checkpoints share one table.

    Example: llmbuild eval artifacts/demo-int4 --dataset file:models/demo/heldout.txt
    """
    from toolchain.pipeline.evaluate import evaluate_paths
    from toolchain.pipeline.events import show_progress
    from toolchain.text.files import find_text

    with show_progress(as_json=json) as progress:
        text = find_text(dataset, revision=revision, subset=subset, split=split, column=column)
        figures = evaluate_paths(
            paths,
            text,
            source=source,
            window=window,
            stride=stride,
            limit=windows,
            device=device,
            simulate=not weights_only,
            progress=progress,
        )
    if json:
        objects = [{"path": path} | one.to_json() for path, one in zip(paths, figures, strict=True)]
        emit(objects[0] if len(objects) == 1 else objects)
    elif len(figures) == 1:
        _print(figures[0])
    else:
        _print_beside_each_other(paths, figures)


def _print(figures: Evaluation) -> None:
    from toolchain.gate.table import figure_table

    (first, *others), rows = figure_table(figures)
    table([first, *(f">{name}" for name in others)], rows, title=_title(figures))
    typer.echo(f"\nrounded: weights{''.join(f', {what}' for what in figures.simulated)}\n")
    table(
        [">layer", ">by itself", ">error after it"],
        [
            [str(layer.layer), f"{layer.own_error:.2%}", f"{layer.relative_error:.2%}"]
            for layer in figures.worst()
        ],
        title="relative error of the hidden states, the layers that add most",
    )


def _print_beside_each_other(paths: list[Path], figures: list[Evaluation]) -> None:
    from toolchain.gate.table import noise

    floor, first = figures[0].floor, figures[0]
    rows = [["source", f"{first.source_perplexity:.4f}", "", "", "", "", ""]]
    if floor is not None:
        rows.append(
            [
                f"source in {floor.dtype}",
                "",
                f"{floor.increase:+.3%}",
                f"{floor.kl:.6f}",
                "",
                f"{floor.top1:.2%}",
                "",
            ]
        )
    for path, one in zip(paths, figures, strict=True):
        rows.append(
            [
                str(path),
                f"{one.quantized_perplexity:.4f}",
                f"{one.increase:+.3%}",
                f"{one.kl:.6f}",
                noise(one.kl_error, ".6f"),
                f"{one.top1:.2%}",
                ", ".join(one.simulated),
            ]
        )
    columns = [
        "model",
        ">perplexity",
        ">increase",
        ">KL, nats",
        ">standard error",
        ">same token",
        "rounded too",
    ]
    table(columns, rows, title=_title(first))


def _title(figures: Evaluation) -> str:
    return f"{figures.tokens} tokens predicted, windows of {figures.window}, stride {figures.stride}"
