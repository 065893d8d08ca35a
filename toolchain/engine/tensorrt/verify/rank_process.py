"""The process of one rank: it loads its own file, computes its part, and tells how far each layer is off.

Two sequences go through every layer together: the ranks' own, from embedding to logits, and what enters the
layer in the source's run, so that a layer that is wrong is not excused by one before it, nor blamed for it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from quantize.layer import rotary_tables
from toolchain.engine.tensorrt.rank import RankFile
from toolchain.engine.tensorrt.rank_config import load_rank_config
from toolchain.engine.tensorrt.verify.halves import channel_error
from toolchain.engine.tensorrt.verify.reference import read_ends, read_layer
from toolchain.engine.tensorrt.verify.scales import scale_error
from toolchain.engine.tensorrt.verify.sharded import ShardedModel
from toolchain.errors import LlmbuildError
from toolchain.model.spec import ModelSpec


@dataclass(frozen=True)
class Job:
    """What every rank is told.

    Args:
        checkpoint: directory of the ranks.
        work_dir: holds the source's run, and takes logs and logits.
        spec: of the model, with the windows of the source.
        world: how many processes there are.
        backend: "gloo", on the CPU, or "nccl", with a GPU for each rank.
    """

    checkpoint: Path
    work_dir: Path
    spec: ModelSpec
    world: int
    backend: str

    def log(self, rank: int) -> Path:
        """What the rank's process says on standard error."""
        return self.work_dir / f"rank{rank}.log"

    @property
    def logits(self) -> Path:
        """The logits that the last stage leaves."""
        return self.work_dir / "logits.safetensors"


def main(job: Job, rank: int, report: Connection) -> None:
    """Run rank `rank`. Sends dicts; the last is {"done": rank, ...} or {"failed": ...}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter, which has it too, ends this process
    threading.Thread(target=_end_with_starter, daemon=True).start()
    descriptor = os.open(job.log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        _Rank(job, rank, report).run()
    except LlmbuildError as error:
        report.send({"failed": error.to_json()})
        raise SystemExit(1) from None
    finally:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def _end_with_starter() -> None:
    """The fork server would not: it lives as long as what it forked."""
    starter = multiprocessing.parent_process()
    if starter is not None:
        wait([starter.sentinel])
        os._exit(1)


class _Rank:
    def __init__(self, job: Job, rank: int, report: Connection) -> None:
        self.job, self.rank, self.report = job, rank, report
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // job.world))
        self.device = torch.device("cpu" if job.backend == "gloo" else f"cuda:{rank}")
        self.file = RankFile(load_rank_config(job.checkpoint), rank)
        self.mapping = self.file.config.mapping
        self.tells = self.file.tp_rank == 0

    @torch.inference_mode()
    def run(self) -> None:
        """The whole model, or the part of it that is this rank's."""
        job, file = self.job, self.file
        model = ShardedModel(file, job.spec, self._connect(), self.device)
        ends = read_ends(job.work_dir)
        length = len(ends["tokens"])
        cos_SR, sin_SR = rotary_tables(job.spec, length, torch.float32)
        rotary = cos_SR.to(self.device), sin_SR.to(self.device)
        hidden_SH = self._enter(model, ends)
        for index in file.layers:
            if index + 1 in file.layers:
                file.prefetch(index + 1)
            hidden_SH = self._layer(model, index, hidden_SH, rotary)
        self._leave(model, ends, hidden_SH)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.report.send({"done": self.rank, "peak_memory": peak})

    def _connect(self) -> dist.ProcessGroup | None:
        """Meet the other ranks; the group of this stage."""
        job, tp = self.job, self.mapping.tp
        if job.world == 1:
            return None
        if job.backend == "gloo":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        else:
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            job.backend,
            init_method=f"file://{job.work_dir / 'rendezvous'}",
            rank=self.rank,
            world_size=job.world,
        )
        groups: list[dist.ProcessGroup] = [
            dist.new_group(list(range(stage * tp, stage * tp + tp))) for stage in range(self.mapping.pp)
        ]
        return groups[self.file.stage]

    def _enter(self, model: ShardedModel, ends: dict[str, Tensor]) -> Tensor:
        """What enters the first layer of this stage, [S, H]."""
        if self.file.is_first:
            hidden_SH = model.embed(ends["tokens"])
            self._tell("embedding", hidden_SH, ends["embedded"])
            return hidden_SH
        hidden_SH = torch.empty_like(ends["embedded"], device=self.device)
        dist.recv(hidden_SH, src=self.rank - self.mapping.tp)
        return hidden_SH

    def _layer(
        self, model: ShardedModel, index: int, hidden_SH: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """What leaves the layer, [S, H]."""
        layer = model.layer(index)
        source = read_layer(self.job.work_dir, index)
        input_SH, attention_SH, mlp_SH = (
            state.to(self.device) for state in (source.input, source.attention, source.mlp)
        )
        update_2SH = layer.attention(torch.stack([hidden_SH, input_SH]), rotary)
        hidden_SH = hidden_SH + update_2SH[0]
        errors = {"attention": self._error(update_2SH[1], attention_SH)}
        middle_SH = input_SH + attention_SH
        update_2SH = layer.mlp(torch.stack([hidden_SH, middle_SH]))
        hidden_SH = hidden_SH + update_2SH[0]
        errors["mlp"] = self._error(update_2SH[1], mlp_SH)
        errors["after"] = self._error(hidden_SH, middle_SH + mlp_SH)
        errors["scales"] = scale_error(self.job.spec, index, layer.scales, source.scales)
        if self.tells:
            self.report.send({"layer": index, "stage": self.file.stage} | errors)
        return hidden_SH

    def _leave(self, model: ShardedModel, ends: dict[str, Tensor], hidden_SH: Tensor) -> None:
        """Hand on to the next stage; in the last one make logits."""
        if not self.file.is_last:
            dist.send(hidden_SH.contiguous(), dst=self.rank + self.mapping.tp)
            return
        streams_2SH = torch.stack([hidden_SH, ends["output"].to(self.device)])
        logits_2SV = model.logits(streams_2SH)[..., : ends["logits"].shape[-1]]
        self._tell("head", logits_2SV[1], ends["logits"])
        if self.tells:
            save_file({"logits": logits_2SV[0].cpu().contiguous()}, self.job.logits)

    def _tell(self, part: str, got_SC: Tensor, expected_SC: Tensor) -> None:
        if self.tells:
            event: dict[str, Any] = {"part": part, "error": self._error(got_SC, expected_SC)}
            self.report.send(event)

    def _error(self, got_SC: Tensor, expected_SC: Tensor) -> float:
        return channel_error(got_SC, expected_SC.to(self.device)) if self.tells else 0.0
