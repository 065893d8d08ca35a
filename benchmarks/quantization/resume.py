"""What a kill costs: our quantization is killed at some instant, then run again."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quantization.cases import OURS
from benchmarks.quantization.child import kill, run, start
from benchmarks.quantization.runners.job import Job

# Parts of an undisturbed run after which it is killed.
MOMENTS = (0.35, 0.6, 0.85)


def measure_resume(
    job: Job, scratch: Path, limit: float, moments: Sequence[float] = MOMENTS
) -> dict[str, Any]:
    """Kill -9 at some moments of the run that `job` describes.

    Returns:
        `layers`: of the model; `finished layers lost`, the most at any kill; `work lost, layers`: seconds of
        both runs together beyond those of an undisturbed one, less those of a second start, in units of a
        layer's median time; `same bytes`: whether the outputs are those of the undisturbed run.
    """
    whole = run(OURS, _moved(job, scratch / "whole"), scratch / "log", limit)
    if whole.problem:
        return {"resume": whole.problem}
    layer_seconds = statistics.median(whole.report["layers"])
    starting = whole.total - sum(whole.report["layers"])
    reference = _digest(scratch / "whole")
    lost_layers, lost_work, same = 0, 0.0, True
    for number, moment in enumerate(moments):
        made = _moved(job, scratch / f"killed-{number}")
        began = time.perf_counter()
        child = start(OURS, made, scratch / "log")
        assert child is not None
        time.sleep(starting + moment * (whole.total - starting))
        kill(child)
        before = time.perf_counter() - began
        finished = _events(made).count("advance")
        Path(f"{made.out}.events").write_text("")
        again = run(OURS, made, scratch / "log", limit)
        if again.problem:
            return {"resume": again.problem}
        resumed = int(_events(made)[0].split()[1])
        lost_layers = max(lost_layers, finished - resumed)
        lost_work = max(lost_work, (before + again.total - whole.total - starting) / layer_seconds)
        same = same and _digest(scratch / f"killed-{number}") == reference
    return {
        "layers": len(whole.report["layers"]),
        "finished layers lost": lost_layers,
        "work lost, layers": round(lost_work, 2),
        "same bytes": same,
    }


def _moved(job: Job, out: Path) -> Job:
    return replace(job, out=str(out), report=f"{out}.json")


def _events(job: Job) -> list[str]:
    return Path(f"{job.out}.events").read_text().splitlines()


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
