"""Start-up of the command, and a rebuild with nothing changed."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.spread import spread

RECIPE = Path(__file__).parents[1] / "configs" / "demo-int4.yaml"
ROUNDS = 15


def run() -> dict[str, Any]:
    """`llmbuild --help` beside `python -c pass`, alternating; and a rebuild of the demo recipe."""
    llmbuild = [str(Path(sys.executable).with_name("llmbuild"))]
    empty, help_ = [], []
    for _ in range(ROUNDS):
        empty.append(_seconds([sys.executable, "-c", "pass"]))
        help_.append(_seconds([*llmbuild, "--help"]))
    with tempfile.TemporaryDirectory() as scratch:
        build = [*llmbuild, "build", str(RECIPE), "--out", f"{scratch}/artifacts"]
        environment = os.environ | {"LLMBUILD_STORE": f"{scratch}/store"}
        first = _seconds(build, environment)
        again = [_seconds(build, environment) for _ in range(5)]
    over = 1e3 * (statistics.median(help_) - statistics.median(empty))
    return {
        "python -c pass, ms": spread([1e3 * s for s in empty]),
        "llmbuild --help, ms": spread([1e3 * s for s in help_]),
        "over it, ms (goal: 200 at most)": round(over),
        "first build of demo-int4, s": round(first, 1),
        "rebuild with nothing changed, s (goal: under 1)": spread(again),
    }


def _seconds(command: Sequence[str], environment: dict[str, str] | None = None) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started
