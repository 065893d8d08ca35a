"""Cutting a checkpoint into rank files for tensor parallelism 4, beside `cp` of the same bytes.

python -m benchmarks.convert_ranks MODEL OUT     convert in this process, print seconds and memory
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ir_memory import replace_linears_by_codes, status
from benchmarks.model import random_llama

HIDDEN, TENSOR, ROUNDS = 2048, 4, 3
DISK, MEMORY = "disk", "memory (tmpfs)"
PLACES = {DISK: None, MEMORY: "/dev/shm"}
CASES = (
    # where, layers, int4
    (DISK, 6, False),
    (DISK, 24, False),
    (DISK, 24, True),
    (MEMORY, 6, False),
    (MEMORY, 24, False),
)


def run() -> dict[str, Any]:
    """Convert random models, each in a process of its own, beside `cp`."""
    load = os.getloadavg()[0]
    return {
        "model": f"random Llama, hidden {HIDDEN}, {HIDDEN // 64} heads of which {HIDDEN // 256} KV, "
        f"MLP {HIDDEN * 11 // 4}; tensor {TENSOR}",
        "speed": f"bytes written a second, median of {ROUNDS} rounds, the two alternating; the source is in "
        "the page cache, and a round ends when everything is on the disk (fsync)",
        "growth": "of the resident set (VmHWM) of the converting process beyond the imports",
        "load": f"{load:.1f} runnable processes beside it when it began",
        "rows": [_measure(*case) for case in CASES],
    }


def _measure(place: str, layers: int, int4: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=PLACES[place]) as name:
        model, ranks, copy = (Path(name) / part for part in ("model", "ranks", "copy"))
        random_llama(model, hidden=HIDDEN, layers=layers, intermediate=HIDDEN * 11 // 4)
        if int4:
            replace_linears_by_codes(model)
        files = sorted(model.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        os.sync()
        copied, converted, grown = [], [], 0
        for _ in range(ROUNDS + 1):  # the first warms the page cache up
            copied.append(_copy(files, copy))
            command = [sys.executable, "-m", "benchmarks.convert_ranks", str(model), str(ranks)]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            grown, seconds = json.loads(child.stdout)
            converted.append(seconds)
            written = sum(file.stat().st_size for file in ranks.glob("*.safetensors"))
            for directory in (copy, ranks, ranks.with_name("work")):
                shutil.rmtree(directory)
            os.sync()
        speeds = [
            round(size / statistics.median(copied[1:]) / 1e6),
            round(written / statistics.median(converted[1:]) / 1e6),
        ]
        return {
            "to": place,
            "weights": "int4" if int4 else "bf16",
            "layers": layers,
            "checkpoint, MB": round(size / 1e6),
            "cp, MB/s": speeds[0],
            "convert, MB/s": speeds[1],
            "of cp": round(speeds[1] / speeds[0], 2),
            "growth, MB": round(grown / 1e6),
        }


def _copy(files: list[Path], target: Path) -> float:
    """Seconds that `cp` of the files takes, until they are on the disk."""
    target.mkdir()
    started = time.perf_counter()
    subprocess.run(["cp", *files, target], check=True)
    for file in target.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - started


def _convert(model: Path, ranks: Path) -> tuple[int, float]:
    """Bytes by which this process's peak resident memory grew, and the seconds it took."""
    import toolchain.engine.tensorrt.convert.run  # noqa: F401 -- torch itself is not to be counted
    from toolchain.engine.tensorrt.convert import RankLayout, convert
    from toolchain.progress import Silent

    before, started = status("VmRSS"), time.perf_counter()
    convert(model, ranks, ranks.with_name("work"), layout=RankLayout(tensor=TENSOR), progress=Silent())
    return status("VmHWM") - before, time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(_convert(Path(sys.argv[1]), Path(sys.argv[2]))))
