"""`llmbuild eval`: how far a quantized checkpoint is from its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolchain.cli.common import JsonOption, emit, path_argument, table, verb

if TYPE_CHECKING:
    from toolchain.gate.result import Evaluation


@verb
def eval(
    path: Annotated[
        Path,
        typer.Argument(help="A checkpoint directory, or an artifact.", parser=path_argument),
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
    json: JsonOption = False,
) -> None:
    """Measure a quantized checkpoint against its source: perplexity, KL divergence, error by layer.

    Both run in float32, one decoder layer of each in memory at a time.

    Example: llmbuild eval artifacts/demo-int4 --dataset file:models/demo/heldout.txt
    """
    from toolchain.pipeline.evaluate import evaluate_path
    from toolchain.pipeline.events import show_progress
    from toolchain.text.files import find_text

    with show_progress(as_json=json) as progress:
        text = find_text(dataset, revision=revision, subset=subset, split=split, column=column)
        figures = evaluate_path(
            path, text, source=source, window=window, stride=stride, limit=windows, progress=progress
        )
    if json:
        emit(figures.to_json())
    else:
        _print(figures)


def _print(figures: Evaluation) -> None:
    rows = [
        ["perplexity of the source", f"{figures.source_perplexity:.4f}", ""],
        ["perplexity, quantized", f"{figures.quantized_perplexity:.4f}", ""],
        ["increase", f"{figures.increase:+.3%}", _noise(figures.increase_error, ".3%")],
        ["KL(source || quantized), nats", f"{figures.kl:.6f}", _noise(figures.kl_error, ".6f")],
        ["same likeliest token", f"{figures.top1:.2%}", ""],
    ]
    table(
        ["figure", ">value", ">standard error"],
        rows,
        title=f"{figures.tokens} tokens predicted, windows of {figures.window}, stride {figures.stride}",
    )
    typer.echo()
    table(
        [">layer", ">by itself", ">error after it"],
        [
            [str(layer.layer), f"{layer.own_error:.2%}", f"{layer.relative_error:.2%}"]
            for layer in figures.worst()
        ],
        title="relative error of the hidden states, the layers that add most",
    )


def _noise(error: float | None, form: str) -> str:
    return "one window: unknown" if error is None else f"± {error:{form}}"
