"""One run in a process of its own: its interpreter, its time limit, its peak memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.quantization.cases import OURS, PEERS
from benchmarks.quantization.runners.job import Job, peak_memory

ROOT = Path(__file__).resolve().parents[2]
PEERS_VARIABLE = "LLMBUILD_PEERS"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Args:
        problem: why there are no figures, "" if there are; "over N s" and "failed: ..." among them.
        total: seconds from the start of the process to its end.
        quantize: seconds of the quantization alone; of ours, with reading and writing.
        peak: largest resident set, bytes.
        report: everything that the runner reported.
    """

    problem: str = ""
    total: float = 0.0
    quantize: float = 0.0
    peak: int = 0
    report: dict[str, Any] = field(default_factory=dict)


def interpreter(tool: str) -> str | None:
    """The Python that has `tool`; None if there is none.

    $LLMBUILD_PEERS/TOOL/bin/python; for ours and, where it is installed beside us, for ModelOpt our own.
    """
    if tool == OURS:
        return sys.executable
    own = Path(os.environ.get(PEERS_VARIABLE, "/nonexistent")) / tool / "bin" / "python"
    if own.is_file():
        return str(own)
    return sys.executable if tool == "modelopt" and find_spec("modelopt") is not None else None


def versions() -> dict[str, str]:
    """The release of each peer, or "absent"."""
    found = {}
    for tool, distribution in PEERS.items():
        python = interpreter(tool)
        code = f"from importlib.metadata import version; print(version({distribution!r}))"
        run = python and subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        found[distribution] = run.stdout.strip() or "absent" if run else "absent"
    return found


def environment() -> dict[str, str]:
    """That of a run: nothing is downloaded, no GPU is seen, our packages come from this checkout."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def start(tool: str, job: Job, log: Path) -> subprocess.Popen[bytes] | None:
    """Start the run, its output going to `log`; None if the tool is not there."""
    python = interpreter(tool)
    if python is None:
        return None
    module = f"benchmarks.quantization.runners.{'ours' if tool == OURS else tool}"
    with log.open("wb") as output:
        return subprocess.Popen(
            [python, "-m", module, job.as_argument()],
            cwd=log.parent,  # some tools leave logs where they run
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(tool: str, job: Job, log: Path, limit: float) -> Outcome:
    """Run to the end, or to `limit` seconds."""
    started = time.perf_counter()
    child = start(tool, job, log)
    if child is None:
        return Outcome("absent")
    try:
        code = child.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        peak = peak_memory(child.pid)
        kill(child)
        return Outcome(f"over {limit:.0f} s", total=limit, peak=peak)
    except BaseException:
        kill(child)
        raise
    total = time.perf_counter() - started
    report_file = Path(job.report)
    if code != 0 or not report_file.is_file():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return Outcome(f"failed: {lines[-1][-200:] if lines else f'exit status {code}'}", total=total)
    report: dict[str, Any] = json.loads(report_file.read_text())
    if "absent" in report:
        return Outcome(f"absent: {report['absent']}".partition("\n")[0])
    return Outcome("", total, report["quantize"], report["peak"], report)


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a run that was started here, and what it started."""
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
