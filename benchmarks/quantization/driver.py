"""Runs the cases one after another, judges what they made, and sums up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.quantization import child
from benchmarks.quantization.cases import DEEP, DEMO, JUDGED, OURS, WIDE, Case, cases
from benchmarks.quantization.child import Outcome
from benchmarks.quantization.floor import floor_seconds, measure_machine
from benchmarks.quantization.inputs import HELDOUT, Sizes, calibration_file, model_dir
from benchmarks.quantization.quality import WINDOW, Quality, judge, source_on
from benchmarks.quantization.resume import measure_resume
from benchmarks.quantization.runners.job import Job
from benchmarks.quantization.table import Measured, rows
from toolchain.errors import LlmbuildError
from toolchain.gate.baseline import Baseline

USUAL = Sizes()
LIMIT = 150.0
"""Seconds after which a run is killed."""

RESUMED = Case(DEMO, "awq_gptq", 128, OURS)
CACHE = Path(os.environ.get("LLMBUILD_BENCH", Path.home() / ".cache" / "llmbuild-bench"))


def measure(
    sizes: Sizes = USUAL,
    limit: float = LIMIT,
    wanted: Callable[[Case], bool] = lambda case: True,
    resume: bool = True,
    dtype: str = "auto",
) -> dict[str, Any]:
    """Run the cases that are `wanted`, each in a process of its own.

    Args:
        sizes: how much there is to do.
        limit: seconds after which a run is killed.
        wanted: which cases.
        resume: whether to measure what a kill costs, as well.
        dtype: in which peers hold and run the model: bfloat16, as it is stored, float32, or auto, in which
            this machine multiplies faster. Ours decides by itself.

    Returns:
        `rows`, the table, and what it was measured with.
    """
    chosen = [case for case in cases() if wanted(case)]
    CACHE.mkdir(parents=True, exist_ok=True)
    machine = measure_machine(model_dir(DEMO, sizes, CACHE) / "model.safetensors")
    dtype = machine.dtype if dtype == "auto" else dtype
    baselines = {
        name: source_on(HELDOUT, model_dir(name, sizes, CACHE), sizes.heldout)
        for name in JUDGED
        if name == DEMO or any(case.model == name for case in chosen)
    }
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="quantization-", dir=CACHE) as name:
        scratch = Path(name)
        for number, case in enumerate(chosen):
            job = _job(case, sizes, scratch / str(number), dtype)
            outcome, quality = _one(case, job, limit, baselines.get(case.model))
            samples, length = _calibration(case, sizes)
            floor = floor_seconds(Path(job.model), case.method, samples * length, length, machine)
            measured.append(Measured(case, outcome, quality, floor))
            print(_line(measured[-1]), file=sys.stderr, flush=True)
        killed = (
            measure_resume(_job(RESUMED, sizes, scratch / "resume", dtype), scratch, limit) if resume else {}
        )
    return {
        "models": "models/demo for quality, as it is and with outlier channels, which large models have and "
        "it lacks (benchmarks/quantization/outliers.py: it computes the same); random weights of the shape "
        "of Llama 3.1 8B's layers (hidden 4096, MLP 14336, 32 heads, 8 KV heads; vocabulary 4096) for time "
        "and memory",
        "calibration": f"demo {_times(sizes.demo)} tokens of its calibration set; "
        f"random weights {_times(sizes.wide)} random tokens",
        "quality": f"KL(source || quantized) in nats and perplexity on {HELDOUT.name}, windows of {WINDOW} "
        "tokens, by llmbuild's evaluator: from the tool's checkpoint where our reader takes it, or else from "
        "the weights as the tool dequantizes them",
        "KL of bfloat16 arithmetic alone": _floor_kl(baselines[DEMO]),
        "time": "quantize: without loading and saving, which ours cannot be without; total: the process; "
        f"a run is stopped after {limit:.0f} s",
        "ratios": "to the best peer's same method on the same model; below 1 is better",
        "floor": "forwards of the calibration tokens (two for awq and gptq) and Gram matrices at "
        f"{machine.flops / 1e9:.0f} GFLOP/s ({machine.dtype}, 1024 x 1024), every weight read at "
        f"{machine.read / 1e9:.1f} GB/s",
        "peers": ", ".join(f"{tool} {version}" for tool, version in child.versions().items())
        + f"; they hold and run the model in {dtype}"
        + (", in which this machine multiplies faster" if dtype == machine.dtype else ""),
        **_depth(measured),
        **{f"kill -9 and resume: {key}": value for key, value in killed.items()},
        "rows": rows(measured),
    }


def _floor_kl(baseline: Baseline) -> str:
    return f"{baseline.floor.kl:.5f}" if baseline.floor else "-"


def _one(case: Case, job: Job, limit: float, baseline: Baseline | None) -> tuple[Outcome, Quality | str]:
    """Run a case; judge what it made, or say why not; leave nothing."""
    out = Path(job.out)
    try:
        outcome = child.run(case.tool, job, out.with_suffix(".log"), limit)
        if outcome.problem or baseline is None:
            return outcome, ""
        return outcome, judge(case.tool, Path(job.model), out, baseline)
    except (LlmbuildError, subprocess.SubprocessError) as error:  # the other runs are not lost for it
        return outcome, f"cannot be judged: {error}".partition("\n")[0]
    finally:
        for path in out.parent.glob(f"{out.name}*"):
            if path.is_dir():
                shutil.rmtree(path)


def _job(case: Case, sizes: Sizes, out: Path, dtype: str) -> Job:
    return Job(
        model=str(model_dir(case.model, sizes, CACHE)),
        tokens=str(calibration_file(case.model, sizes, CACHE)),
        out=str(out),
        method=case.method,
        group_size=case.group_size or 128,
        variant=case.variant,
        dtype=dtype,
        report=f"{out}.json",
    )


def _calibration(case: Case, sizes: Sizes) -> tuple[int, int]:
    return sizes.demo if case.model in JUDGED else sizes.wide


def _depth(measured: list[Measured]) -> dict[str, str]:
    """Our peak memory with eight layers over that with four."""
    peaks = {
        (one.case.model, one.case.method): one.outcome.peak
        for one in measured
        if one.case.tool == OURS and not one.outcome.problem
    }
    ratios = [
        f"{method} {peaks[DEEP, method] / peak:.3f}"
        for (model, method), peak in peaks.items()
        if model == WIDE and (DEEP, method) in peaks
    ]
    return (
        {"our peak memory with 8 layers over 4 (goal: within 5 % of 1)": ", ".join(ratios)} if ratios else {}
    )


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _line(one: Measured) -> str:
    case, outcome = one.case, one.outcome
    figures = (
        outcome.problem or f"{outcome.quantize:.1f} s of {outcome.total:.1f} s, {outcome.peak / 1e6:.0f} MB"
    )
    kl = one.quality
    if isinstance(kl, Quality):
        kl = f"KL {kl.kl:.5f} ({kl.seen})"
    return f"  {case.model}, {case.method} {case.group_size or ''} {case.tool} {case.variant}: {figures} {kl}"
