"""The report of a build, from what its stages left in the store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.gate.verdict import GATE_FILE, REPORT_FILE, read_measured
from toolchain.pipeline.inspect import inspect_checkpoint
from toolchain.pipeline.runner import StageResult
from toolchain.report.page import Facts, render

if TYPE_CHECKING:
    from toolchain.recipe import Recipe


def report_of(recipe: Recipe, results: Sequence[StageResult]) -> str:
    """HTML that tells of the checkpoint and of its gates, as far as the build went."""
    outputs = {result.stage.name: result.path for result in results}
    about = {"model": Path(recipe.model.source).name, "method": recipe.quantization.method}
    linears: dict[str, Any] = {}
    sizes: Counter[str] = Counter()
    if "quantize" in outputs:
        file = outputs["quantize"] / REPORT_FILE
        linears = json.loads(file.read_bytes()).get("linears", {}) if file.is_file() else {}
        facts = inspect_checkpoint(outputs["quantize"])
        about |= {"format": str(facts.quantization.get("quant_algo") or "unquantized")}
        for row in facts.rows:
            sizes[_kind(row.name)] += row.nbytes
    measured = read_measured(outputs["gate"] / GATE_FILE) if "gate" in outputs else None
    answers = () if measured is None else measured.answers
    if "smoke" in outputs:
        answers = read_measured(outputs["smoke"] / GATE_FILE).answers
    return render(Facts(recipe.name, about, linears, measured, answers, sizes))


def _kind(name: str) -> str:
    """What a tensor is, without its layer: all norms are one kind, and so are all scales."""
    module, _, tensor = name.removeprefix("model.").rpartition(".")
    module = module.removeprefix("layers.*.")
    if "norm" in module:
        return "norms"
    if "scale" in tensor or tensor in ("scales", "qzeros", "g_idx", "weight_shape"):
        return "scales of quantized linears"
    return f"{module} biases" if tensor == "bias" else module
