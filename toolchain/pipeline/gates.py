"""The gate stage, and the baseline that it measures against: what each depends on, and its run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.gate.verdict import GATE_FILE, judge, read_measured, wanted, worst_linears, write_measured
from toolchain.pipeline.quantization import device_type
from toolchain.pipeline.stage import MODEL_FILES, Source, Stage, StageContext, versions
from toolchain.pipeline.texts import read_text, text_config, text_source

if TYPE_CHECKING:
    from toolchain.recipe import Recipe
    from toolchain.text.files import TextFiles

_TEXT = "text"


def baseline_stage(
    model: Path, text: TextFiles, *, windows: int | None, window: int | None, stride: int | None, device: str
) -> Stage:
    """The source model on a held-out text. Every checkpoint of the model is measured against its output.

    Args:
        model: the directory with the source model.
        text: the held-out text.
        windows, window, stride: how it is cut, as in `load_windows`.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """
    cut = {"windows": windows, "window": window, "stride": stride}
    return Stage(
        name="baseline",
        version=1,
        run=_run_baseline,
        sources={"model": Source(model, MODEL_FILES), _TEXT: text_source(text)},
        config={"device": device_type(device), _TEXT: text_config(text), **cut},
        tools=versions("torch", "tokenizers"),
    )


def _run_baseline(context: StageContext) -> None:
    from toolchain.gate.run import baseline_of

    config = context.config
    baseline_of(
        context.inputs["model"],
        read_text(context.inputs[_TEXT], config[_TEXT]),
        window=config["window"],
        stride=config["stride"],
        limit=config["windows"],
        device=config["device"],
        progress=context.progress,
    ).save(context.out_dir)


def gate_stages(recipe: Recipe, model: Path, texts: Mapping[str, TextFiles]) -> list[Stage]:
    """The measurement that the recipe's gates judge; nothing where no gate needs one."""
    measured = {name: text for name, text in wanted(recipe.gates).items() if name in texts}
    if not measured:
        return []
    device = recipe.quantization.device

    def check(out_dir: Path) -> None:
        judge(recipe.gates, read_measured(out_dir / GATE_FILE))

    baselines = {
        name: baseline_stage(
            model, texts[name], windows=text.windows, window=text.window, stride=text.stride, device=device
        )
        for name, text in measured.items()
    }
    commits = {name: commit for name in measured if (commit := texts[name].commit) is not None}
    return [
        Stage(
            name="gate",
            version=2,
            run=partial(_run_gate, commits=commits),  # recorded, but no part of the key: see text_config
            inputs=("quantize",),
            sources={"model": Source(model, MODEL_FILES)},
            config={"device": device_type(device), "texts": list(measured)},
            tools=versions("torch"),
            intermediates=baselines,
            check=check,
        )
    ]


def _run_gate(context: StageContext, commits: Mapping[str, str]) -> None:
    from toolchain.gate.baseline import Baseline
    from toolchain.gate.evaluate import evaluate

    checkpoint = context.inputs["quantize"]
    figures = {
        name: evaluate(
            context.inputs["model"],
            checkpoint,
            Baseline.load(context.inputs[name]),
            device=context.config["device"],
            progress=context.progress,
        )
        for name in context.config["texts"]
    }
    write_measured(context.out_dir / GATE_FILE, figures, worst_linears(checkpoint))
    context.facts.update(_facts(figures))
    if commits:
        context.facts["commits"] = dict(commits)


def _facts(figures: Mapping[str, Any]) -> dict[str, float]:
    """What the manifest says of the measurement: the first text's figures."""
    first = next(iter(figures.values()))
    return {
        "perplexity": round(first.quantized_perplexity, 4),
        "increase": round(first.increase, 6),
        "kl": round(first.kl, 6),
        "top1": round(first.top1, 6),
    }
