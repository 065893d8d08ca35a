"""How good a checkpoint is: one evaluator, ours, for every tool."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.quantization.cases import OURS
from benchmarks.quantization.child import ROOT, environment, interpreter
from toolchain.errors import LlmbuildError
from toolchain.gate.baseline import Baseline
from toolchain.gate.evaluate import evaluate
from toolchain.gate.result import Evaluation
from toolchain.gate.run import baseline_of
from toolchain.model.checkpoint import Checkpoint
from toolchain.text.files import TextFiles

WINDOW = 256
_DUMP_SECONDS = 600


@dataclass(frozen=True)
class Quality:
    """Against the source, on held-out text.

    Args:
        kl: mean KL(source || quantized) a token, nats; with the standard error of the mean.
        perplexity: of the quantized model, and of the source.
        seen: "checkpoint" when our reader took the tool's files, activations and all; "weights" when the
            tool dequantized its weights for us: activations are then not rounded.
    """

    kl: float
    kl_error: float | None
    perplexity: float
    source_perplexity: float
    seen: str


def source_on(text: Path, source: Path, limit: int | None) -> Baseline:
    """What the source makes of the held-out text, or of its first `limit` windows."""
    return baseline_of(source, TextFiles.local(text), window=WINDOW, limit=limit, device="cpu")


def judge(tool: str, source: Path, made: Path, baseline: Baseline) -> Quality:
    """Evaluate the checkpoint `made` that `tool` wrote."""
    try:
        return _quality(evaluate(source, made, baseline, device="cpu"), "checkpoint")
    except LlmbuildError:
        if tool == OURS:
            raise
    plain = made.with_name(f"{made.name}.plain")
    _write_plain(tool, source, made, plain)
    return _quality(evaluate(source, plain, baseline, device="cpu"), "weights")


def _quality(found: Evaluation, seen: str) -> Quality:
    return Quality(found.kl, found.kl_error, found.quantized_perplexity, found.source_perplexity, seen)


def _write_plain(tool: str, source: Path, made: Path, plain: Path) -> None:
    """The same model unquantized: linears as the tool dequantizes them, the rest as it saved them."""
    plain.mkdir()
    dump = plain / "dequantized"
    command = [
        str(interpreter(tool)),
        str(ROOT / "tools" / "quantization_fixtures.py"),
        *(tool, "--check", str(made), "--dump", str(dump)),
    ]
    subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=_DUMP_SECONDS)
    linears, saved, original = load_file(dump), Checkpoint.open(made), Checkpoint.open(source)
    dump.unlink()
    tensors = {name: linears[name] if name in linears else saved.read(name) for name in original.names}
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    (plain / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text())))
