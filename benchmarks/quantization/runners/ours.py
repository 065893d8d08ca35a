"""llmbuild itself. It reads, quantizes and writes layer by layer: there is no loading or saving apart."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.quantization.runners.job import Job, write_report
from quantize.calibration import Calibration
from quantize.driver import quantize_model
from quantize.methods.registry import make_method
from toolchain.errors import LlmbuildError


class Events:
    """Appends a line for each event to a file, for the benchmark that kills this process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        """Note how many layers were finished before."""
        self._line(f"start {done} {total}")

    def advance(self, amount: int = 1) -> None:
        """Note a finished layer."""
        self._line("advance")

    def note(self, text: str) -> None:
        """Ignore it."""

    def _line(self, text: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{text}\n")


def main() -> None:
    """Quantize as the command line says."""
    job = Job.of_arguments()
    tokens_NS = torch.from_numpy(np.load(job.tokens))
    try:
        method = make_method(job.method, group_size=job.group_size)
    except LlmbuildError as error:
        write_report(job, absent=str(error))
        return
    started = time.perf_counter()
    report = quantize_model(
        Path(job.model),
        Path(job.out),
        Path(f"{job.out}.work"),
        method=method,
        calibration=Calibration(Path(job.tokens).name, tokens_NS, seed=0),
        events=Events(Path(f"{job.out}.events")),
    )
    write_report(
        job,
        quantize=time.perf_counter() - started,
        layers=report["seconds_per_layer"],
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
