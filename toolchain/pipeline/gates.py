"""The stages that judge: the gate, the baseline that it measures against, and the smoke test of an engine.

A checkpoint is measured before an engine is built from it. Prompts are answered by the engine where it runs
on the machine that builds it, and by the checkpoint, layer by layer, where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.engine import flavour
from toolchain.gate.prompts import PROMPTS
from toolchain.gate.verdict import (
    GATE_FILE,
    judge,
    judge_answers,
    read_measured,
    wanted,
    worst_linears,
    write_measured,
)
from toolchain.pipeline.quantization import device_type
from toolchain.pipeline.stage import MODEL_FILES, Source, Stage, StageContext, versions
from toolchain.pipeline.texts import read_text, text_config, text_source

if TYPE_CHECKING:
    from toolchain.gate.result import Answer
    from toolchain.recipe import Recipe
    from toolchain.recipe.schema import SmokeGate
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


def has_gate(recipe: Recipe) -> bool:
    """Whether the recipe has a stage gate."""
    return bool(wanted(recipe.gates)) or (recipe.gates.smoke is not None and not has_smoke(recipe))


def has_smoke(recipe: Recipe) -> bool:
    """Whether the recipe has a stage smoke."""
    return recipe.gates.smoke is not None and flavour(recipe.engine.flavour).answers_here


def simulates(recipe: Recipe) -> bool:
    """Whether the recipe's engine rounds activations and KV cache as the scheme says; openvino's does not."""
    return recipe.engine.flavour != "openvino"


def gate_stages(recipe: Recipe, model: Path, texts: Mapping[str, TextFiles]) -> list[Stage]:
    """The measurement that the recipe's gates judge; nothing where no gate needs one."""
    if not has_gate(recipe):
        return []
    measured = {name: text for name, text in wanted(recipe.gates).items() if name in texts}
    device, smoke = recipe.quantization.device, recipe.gates.smoke

    def check(out_dir: Path) -> None:
        judge(recipe.gates, read_measured(out_dir / GATE_FILE))

    baselines = {
        name: baseline_stage(
            model, texts[name], windows=text.windows, window=text.window, stride=text.stride, device=device
        )
        for name, text in measured.items()
    }
    commits = {name: commit for name in measured if (commit := texts[name].commit) is not None}
    config: dict[str, Any] = {
        "device": device_type(device),
        "texts": list(measured),
        "simulate": simulates(recipe),
    }
    if smoke is not None and not has_smoke(recipe):
        config["smoke"] = _smoke_config(smoke)
    return [
        Stage(
            name="gate",
            version=3,
            run=partial(_run_gate, commits=commits),  # recorded, but no part of the key: see text_config
            inputs=("quantize",),
            sources={"model": Source(model, MODEL_FILES)},
            config=config,
            tools=versions("torch", "tokenizers"),
            intermediates=baselines,
            check=check,
        )
    ]


def _run_gate(context: StageContext, commits: Mapping[str, str]) -> None:
    from toolchain.gate.baseline import Baseline
    from toolchain.gate.evaluate import evaluate
    from toolchain.gate.run import ask_checkpoint

    checkpoint, config = context.inputs["quantize"], context.config
    figures = {
        name: evaluate(
            context.inputs["model"],
            checkpoint,
            Baseline.load(context.inputs[name]),
            device=config["device"],
            simulate=config["simulate"],
            progress=context.progress,
        )
        for name in config["texts"]
    }
    answers: tuple[Answer, ...] = ()
    if "smoke" in config:
        answers = ask_checkpoint(
            context.inputs["model"],
            checkpoint,
            config["smoke"]["prompts"],
            config["smoke"]["max_tokens"],
            device=config["device"],
            progress=context.progress,
        )
    write_measured(context.out_dir / GATE_FILE, figures, worst_linears(checkpoint), answers)
    for first in list(figures.values())[:1]:
        context.facts["perplexity"] = round(first.quantized_perplexity, 4)
        context.facts["increase"] = round(first.increase, 6)
        context.facts["kl"] = round(first.kl, 6)
        context.facts["top1"] = round(first.top1, 6)
    if commits:
        context.facts["commits"] = dict(commits)


def smoke_stages(recipe: Recipe) -> list[Stage]:
    """The smoke test of the finished engine; nothing where the recipe wants none, or it cannot run here."""
    smoke = recipe.gates.smoke
    if smoke is None or not has_smoke(recipe):
        return []
    chosen = flavour(recipe.engine.flavour)

    def run(context: StageContext) -> None:
        from toolchain.gate.run import ask_engine

        answers = ask_engine(
            context.inputs["quantize"],
            context.config["prompts"],
            lambda prompts, eos: chosen.answer(
                context.inputs["repository"], prompts, context.config["max_tokens"], eos
            ),
            device=context.config["device"],
        )
        write_measured(context.out_dir / GATE_FILE, {}, (), answers)
        context.facts["same"] = round(sum(answer.same for answer in answers) / len(answers), 6)

    def check(out_dir: Path) -> None:
        judge_answers(smoke, read_measured(out_dir / GATE_FILE).answers, "checkpoint")

    return [
        Stage(
            name="smoke",
            version=1,
            run=run,
            inputs=("quantize", "repository"),
            config=_smoke_config(smoke)
            | {"flavour": chosen.name, "device": device_type(recipe.quantization.device)},
            tools={**versions("torch", "tokenizers"), **chosen.tools(recipe)},
            check=check,
        )
    ]


def passed_gates(recipe: Recipe, outputs: Mapping[str, Path]) -> dict[str, Any]:
    """What the manifest says of the gates, from the outputs of the stages that there are."""
    passed: dict[str, Any] = {}
    if "gate" in outputs:
        passed |= judge(recipe.gates, read_measured(outputs["gate"] / GATE_FILE))
    if "smoke" in outputs and recipe.gates.smoke is not None:
        answers = read_measured(outputs["smoke"] / GATE_FILE).answers
        passed["smoke"] = judge_answers(recipe.gates.smoke, answers, "checkpoint")
    return passed


def _smoke_config(gate: SmokeGate) -> dict[str, Any]:
    return {"prompts": list(gate.texts or PROMPTS[: gate.prompts]), "max_tokens": gate.max_tokens}
