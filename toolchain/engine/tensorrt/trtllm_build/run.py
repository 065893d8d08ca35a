"""Builds engines with NVIDIA's `trtllm-build`, 0.17 to 1.2: here, in its container, or by a job on a cluster.

Writes rank{N}.engine, config.json, model.cache (the timing cache), trtllm-build.log and the stamp.
trtllm-build cannot resume: killed at any instant, it leaves a directory in the stage's scratch that the next
run removes. What a cluster's job has finished there is taken by the next run as it is.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolchain.engine.tensorrt.gpus import Gpu, architecture, installed_gpus, parse_gpus
from toolchain.engine.tensorrt.stamp import EngineFacts, read_engine, write_stamp
from toolchain.engine.tensorrt.trtllm_build import jobs
from toolchain.engine.tensorrt.trtllm_build.check import check_engine
from toolchain.engine.tensorrt.trtllm_build.command import build_command
from toolchain.engine.tensorrt.trtllm_build.containers import container_command, remove_container
from toolchain.engine.tensorrt.trtllm_build.log import BuildLog
from toolchain.engine.tensorrt.trtllm_build.process import run_logged
from toolchain.errors import BuildError, ToolchainError
from toolchain.plan.releases import release
from toolchain.progress import Progress

_PARTIAL = "engine.partial."
_DONE = "engine"


@dataclass(frozen=True)
class Order:
    """What to build. These values, and the content of its files, decide the engines.

    Args:
        checkpoint: the directory of rank files.
        version: of TensorRT-LLM.
        tensor, pipeline: the split, which the checkpoint has already.
        sm: compute capability x 10 of the GPU to build for.
        flags: as `engine_flags` gives them.
        input_timing_cache: to start from.
        lora_dirs: LoRA weights to build in.
    """

    checkpoint: Path
    version: str
    tensor: int
    pipeline: int
    sm: int
    flags: Mapping[str, Any]
    input_timing_cache: Path | None = None
    lora_dirs: tuple[Path, ...] = ()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tensor * self.pipeline


@dataclass(frozen=True)
class Host:
    """Where and how to build. Nothing of it shows in the engines.

    Args:
        executor: local, docker, podman, slurm or kubernetes.
        image: the container; None where none is used.
        workers: ranks to build at the same time.
        timeout_minutes: None for no limit.
        volume_claim: the PersistentVolumeClaim that is the store.
    """

    executor: str
    image: str | None
    workers: int
    timeout_minutes: int | None = None
    volume_claim: str | None = None


def build_engines(
    order: Order, host: Host, out_dir: Path, work_dir: Path, progress: Progress
) -> dict[str, Any]:
    """Build, check and stamp the engines, and leave them in `out_dir`; return facts for the manifest.

    Args:
        order, host: what, and where.
        out_dir: empty; nothing is in it until all is well.
        work_dir: scratch on the same file system; it outlives this call if that fails.
        progress: told of ranks, phases and warnings.

    Raises:
        ToolchainError: trtllm-build is of another version, or a cluster has to build first.
        BuildError: it failed, took too long, or left something else.
    """
    order = _with_own_files(replace(order, checkpoint=order.checkpoint.resolve()), work_dir)
    done = work_dir / _DONE
    facts: dict[str, Any] = {}
    if host.executor in ("slurm", "kubernetes"):
        if not done.is_dir():
            raise _to_submit(order, host, work_dir)
        built, gpus = done, parse_gpus((done / jobs.GPUS_FILE).read_text("utf-8"))
        progress.note(f"engine: taking what the {host.executor} job has built")
    else:
        for stale in work_dir.glob(_PARTIAL + "*"):
            shutil.rmtree(stale)
        built = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=work_dir))
        facts, gpus = _run(order, host, built, work_dir, progress), installed_gpus()
    engine = _checked(order, built, gpus)
    # Linked, not moved: if this is interrupted, what a cluster has built is still there for the next run.
    own = shutil.ignore_patterns(jobs.GPUS_FILE)
    shutil.copytree(built, out_dir, copy_function=os.link, ignore=own, dirs_exist_ok=True)
    shutil.copyfile(work_dir / jobs.LOG, out_dir / jobs.LOG)
    write_stamp(out_dir, engine)
    return facts | {"tensorrt_llm": engine.tensorrt_llm, "tensorrt": engine.tensorrt, "gpu": engine.gpu}


def _with_own_files(order: Order, work_dir: Path) -> Order:
    """The order with its timing cache and LoRA weights copied to `work_dir`, where containers see them."""
    cache = order.input_timing_cache
    if cache is not None:
        cache = Path(shutil.copyfile(cache, work_dir / "input.cache"))
    own = []
    for index, directory in enumerate(order.lora_dirs):
        copy = work_dir / f"lora{index}"
        shutil.copytree(directory, copy, dirs_exist_ok=True)
        own.append(copy)
    return replace(order, input_timing_cache=cache, lora_dirs=tuple(own))


def _command(order: Order, host: Host, out_dir: Path) -> list[str]:
    return build_command(
        order.checkpoint,
        out_dir,
        order.flags,
        workers=host.workers,
        input_timing_cache=order.input_timing_cache,
        lora_dirs=order.lora_dirs,
    )


def _run(order: Order, host: Host, built: Path, work_dir: Path, progress: Progress) -> dict[str, Any]:
    """Run trtllm-build to its end; return what its log says of the run."""
    command = _command(order, host, built)
    name = f"llmbuild-{secrets.token_hex(6)}"
    in_container = host.executor in ("docker", "podman")
    if in_container:
        assert host.image is not None  # `missing` sees to it
        progress.note(f"engine: trtllm-build in {host.image}")
        command = container_command(
            host.executor,
            host.image,
            command,
            name=name,
            read=[order.checkpoint],
            write=work_dir,
            devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )
    log, heard = work_dir / jobs.LOG, BuildLog(order.version, progress)
    progress.start("build engines", order.world_size, "ranks")
    began = time.monotonic()
    minutes = host.timeout_minutes
    try:
        status = run_logged(
            command,
            log,
            cwd=work_dir,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            timeout_s=None if minutes is None else minutes * 60.0,
            on_line=heard.feed,
        )
    except TimeoutError:
        raise BuildError(
            f"trtllm-build took longer than {minutes} minutes",
            where=str(log),
            why=f"the log ends with\n       {heard.last_lines}",
            fix="raise engine.build.timeout_minutes, or start from engine.build.input_timing_cache",
        ) from None
    except FileNotFoundError:
        raise ToolchainError(
            f"there is no {command[0]} on PATH", where="engine.build.executor", fix="see `llmbuild doctor`"
        ) from None
    finally:
        if in_container:
            remove_container(host.executor, name)
    if status != 0:
        ended = f"signal {-status} ended trtllm-build" if status < 0 else f"trtllm-build ended with {status}"
        raise BuildError(
            f"{ended} after {heard.ranks} of {order.world_size} ranks",
            where=str(log),
            why=f"the log ends with\n       {heard.last_lines}",
            fix=heard.fix(status) or "read the log; its last lines name the cause",
        )
    facts: dict[str, Any] = {"trtllm_build_seconds": round(time.monotonic() - began, 1)}
    if heard.peak_mb is not None:
        facts["rank_peak_memory_mb"] = round(heard.peak_mb)
    return facts


def _checked(order: Order, built: Path, gpus: list[Gpu]) -> EngineFacts:
    """What the engines are tied to, if they are what was ordered; `gpus` are those that built them."""
    check_engine(
        built,
        order.checkpoint,
        version=order.version,
        tensor=order.tensor,
        pipeline=order.pipeline,
        flags=order.flags,
    )
    if not any(gpu.sm == order.sm for gpu in gpus):
        found = ", ".join(sorted({gpu.name for gpu in gpus})) or "no GPU that is known"
        raise BuildError(
            f"the engines are for {architecture(order.sm)}, but were built on {found}",
            where=str(built),
            why="an engine runs only on the GPU architecture that built it",
            fix="set engine.gpu to the GPU that builds, or build on the one that it names",
        )
    known = release(order.version)
    return replace(
        read_engine(built),
        tensorrt=known.tensorrt if known else None,
        sm=order.sm,
        gpu=next(gpu.name for gpu in gpus if gpu.sm == order.sm),
    )


def _to_submit(order: Order, host: Host, work_dir: Path) -> ToolchainError:
    """Write the job, and say how to have it run."""
    partial, done = work_dir / f"{_PARTIAL}job", work_dir / _DONE
    script = jobs.build_script(_command(order, host, partial), work_dir, partial, done)
    (work_dir / jobs.SCRIPT).write_text(script, "utf-8")
    store = Path(os.path.commonpath([order.checkpoint, work_dir]))
    name = f"llmbuild-{work_dir.name[:12]}"
    if host.executor == "slurm":
        job = work_dir / jobs.SLURM_JOB
        text = jobs.slurm_job(
            name,
            work_dir,
            store,
            gpus=host.workers,
            image=host.image,
            timeout_minutes=host.timeout_minutes,
        )
        submit = f"sbatch --wait {shlex.quote(str(job))}"
    else:
        assert host.image is not None  # `missing` sees to it
        job = work_dir / jobs.KUBERNETES_JOB
        text = jobs.kubernetes_job(
            name,
            work_dir,
            store,
            gpus=host.workers,
            image=host.image,
            claim=host.volume_claim,
            timeout_minutes=host.timeout_minutes,
            user=(os.getuid(), os.getgid()),
        )
        wait = f"kubectl wait --for=condition=complete --timeout=24h job/{name}"
        submit = f"kubectl apply -f {shlex.quote(str(job))} && {wait}"
    job.write_text(text, "utf-8")
    why, log = "everything before them is built and stored", work_dir / jobs.LOG
    if log.is_file():
        last = "\n       ".join(log.read_text("utf-8", errors="replace").splitlines()[-5:])
        why = f"an earlier job left no engines; its log ends with\n       {last}"
    return ToolchainError(
        f"the engines are to be built by {host.executor}",
        where=str(job),
        why=why,
        fix=f"{submit}, then run the same build again",
    )
