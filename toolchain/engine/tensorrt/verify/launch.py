"""Starting the processes of the ranks, hearing from them, and leaving none of them behind.

A fork server imports torch once; each rank is forked from it, so that eight ranks start about as fast as one.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from toolchain.engine.tensorrt.verify import rank_process
from toolchain.engine.tensorrt.verify.rank_process import Job
from toolchain.errors import BuildError, LlmbuildError, ModelError

_LAST_LINES = 8
_Event = dict[str, Any]


def run_ranks(job: Job, hear: Callable[[_Event], None]) -> None:
    """Run all ranks to their end; `hear` is given what they report, as it comes.

    Raises:
        ModelError: a rank's file is damaged.
        BuildError: a rank's process died: its exit code and the last lines that it wrote.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([rank_process.__name__])
    processes: list[BaseProcess] = []
    reports: list[Connection] = []
    try:
        for rank in range(job.world):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=rank_process.main, args=(job, rank, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            reports.append(ours)
        _listen(job, processes, reports, hear)
    finally:
        for started in processes:
            started.kill()
        for started in processes:
            started.join()
            started.close()
        for report in reports:
            report.close()


def _listen(
    job: Job, processes: list[BaseProcess], reports: list[Connection], hear: Callable[[_Event], None]
) -> None:
    open_reports = dict(enumerate(reports))
    running = dict(enumerate(processes))
    while running:
        ready = wait([*open_reports.values(), *(process.sentinel for process in running.values())])
        for rank, report in list(open_reports.items()):
            if report in ready:
                try:
                    event = report.recv()
                except (EOFError, OSError):
                    del open_reports[rank]
                    continue
                if "failed" in event:
                    raise _told(event["failed"])
                hear(event)
        ended = [rank for rank, process in running.items() if process.sentinel in ready]
        # What a rank said before its end comes first; of several that ended, one that was killed did not
        # merely lose its peer.
        ended = [rank for rank in ended if rank not in open_reports or not open_reports[rank].poll()]
        for rank in sorted(ended, key=lambda rank: _exit_code(running[rank])):
            code = _exit_code(running.pop(rank))
            if code:
                raise _died(job, rank, code)


def _exit_code(process: BaseProcess) -> int:
    process.join()
    return process.exitcode or 0


def _told(facts: dict[str, Any]) -> LlmbuildError:
    """The error that a rank met, as this process's."""
    return ModelError(facts["what"], where=facts.get("where"), why=facts.get("why"), fix=facts.get("fix"))


def _died(job: Job, rank: int, code: int) -> BuildError:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log = job.log(rank)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    fix = "see whether the machine ran out of memory" if code == -signal.SIGKILL else None
    return BuildError(
        f"the process of rank {rank} of {job.world} {how}",
        where=str(job.checkpoint),
        why="\n       ".join(lines[-_LAST_LINES:]) or "it wrote nothing",
        fix=fix,
    )
