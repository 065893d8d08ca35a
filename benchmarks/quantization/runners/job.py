"""What a runner is told and what it reports. Imports nothing that a peer's environment may lack."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

Model = TypeVar("Model")

BATCH_TOKENS = 2048
"""Calibration tokens that go through a peer's model at a time, where that is ours to say."""


@dataclass(frozen=True)
class Job:
    """One quantization.

    Args:
        model: directory of the source model.
        tokens: .npy file of int64 [samples, length]: the calibration data of every tool.
        out: where the checkpoint goes.
        method: awq, gptq, awq_gptq, fp8 or int8_sq.
        group_size: input channels that share a scale, for the int4 methods.
        variant: of the tool's implementation, e.g. "awq_full"; "" for its default.
        dtype: in which a peer holds and runs the model, bfloat16 or float32.
        report: the file that the runner writes at the end.
    """

    model: str
    tokens: str
    out: str
    method: str
    group_size: int
    variant: str
    dtype: str
    report: str

    @classmethod
    def of_arguments(cls) -> Job:
        """The job that the command line holds as JSON."""
        return cls(**json.loads(sys.argv[1]))

    def as_argument(self) -> str:
        """The inverse."""
        return json.dumps(asdict(self))

    def batches(self) -> list[Any]:
        """The calibration tokens, int64 [batch, length] each."""
        import numpy as np
        import torch

        tokens_NS = torch.from_numpy(np.load(self.tokens))
        return list(torch.split(tokens_NS, max(1, BATCH_TOKENS // tokens_NS.shape[1])))


def run(
    load: Callable[[Job], Model], quantize: Callable[[Job, Model], None], save: Callable[[Job, Model], None]
) -> None:
    """Load, quantize and save as the command line says; report the seconds of each and the peak memory."""
    import torch

    torch.manual_seed(0)
    job = Job.of_arguments()
    marks = [time.perf_counter()]
    model = load(job)
    marks.append(time.perf_counter())
    quantize(job, model)
    marks.append(time.perf_counter())
    save(job, model)
    marks.append(time.perf_counter())
    write_report(
        job,
        load=marks[1] - marks[0],
        quantize=marks[2] - marks[1],
        save=marks[3] - marks[2],
        threads=torch.get_num_threads(),
    )
    # Worker threads of some tools never end.
    sys.stdout.flush()
    os._exit(0)


def write_report(job: Job, **values: Any) -> None:
    """Leave `values` and the peak of the resident set for the parent."""
    Path(job.report).write_text(json.dumps({**values, "peak": peak_memory()}))


def peak_memory(pid: int | str = "self") -> int:
    """The largest resident set that a process had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
