"""What a recipe's engine runs on: a GPU of `data/gpus.yaml`, or this machine's processor."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.data import load_table
from toolchain.errors import PlanError, UsageError

if TYPE_CHECKING:
    from toolchain.recipe.engine import Engine


@dataclass(frozen=True)
class Device:
    """One device, of which a recipe may use several.

    Args:
        name: a row of `data/gpus.yaml`, or "host memory".
        memory: bytes; None where it is not known.
        generation: "cpu", or that of the GPU; None where it is not known.
        node: GPUs that NVLink joins in one machine; 0 where the product has no NVLink, or is not known.
    """

    name: str
    memory: int | None
    generation: str | None = None
    node: int = 0

    @property
    def known(self) -> bool:
        """Whether the tables say what it is."""
        return self.memory is not None


def find_device(engine: Engine) -> tuple[Device, list[PlanError]]:
    """The device to plan for. A GPU that no table knows is a problem."""
    if engine.flavour == "openvino":
        return Device("host memory", host_memory(), "cpu"), []
    gpus = load_table("gpus")
    if engine.gpu is None:
        return Device("GPU (engine.gpu not given)", None), []
    if engine.gpu not in gpus:
        near = difflib.get_close_matches(engine.gpu, gpus, 1)
        problem = PlanError(
            f"no facts about GPU {engine.gpu}",
            where="engine.gpu",
            fix=f"{f'did you mean {near[0]}? ' if near else ''}known: {', '.join(gpus)}",
        )
        return Device(engine.gpu, None), [problem]
    row = gpus[engine.gpu]
    memory = int(row["memory_gib"] * 2**30)
    return Device(engine.gpu, memory, row["generation"], row.get("node_gpus", 0)), []


def gpu_overrides(text: str) -> list[str]:
    """What `--gpu` means, as overrides of a recipe: h200x4 is four h200, l40s alone is as many as it takes.

    Raises:
        UsageError: it does not begin with the name of a GPU that the tables know.
    """
    gpus = load_table("gpus")
    if text in gpus:
        return [f"engine.gpu={text}"]
    found = re.fullmatch(r"(?P<gpu>.+)x(?P<count>[1-9]\d{0,3})", text)
    if found is None or found["gpu"] not in gpus:
        near = difflib.get_close_matches(found["gpu"] if found else text, gpus, 1)
        raise UsageError(
            f"{text!r} is no GPU that the tables know",
            where="--gpu",
            why=f"known are {', '.join(gpus)}; x4 behind one means four of them",
            fix=f"did you mean {near[0]}?" if near else f"write for example {next(iter(gpus))}x4",
        )
    return [f"engine.gpu={found['gpu']}", f"parallelism.gpus={found['count']}"]


def host_memory() -> int:
    """Bytes of memory of this machine, or of the control group that confines this process if less."""
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


_NVIDIA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def has_nvidia() -> bool:
    """Whether this machine has an NVIDIA GPU, as far as can be told without asking its driver."""
    return any(path.exists() for path in _NVIDIA_DEVICES)


def cpu_executes_bf16() -> bool:
    """Whether OpenVINO's `fast` computes in bf16 on this CPU."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_flags())


def cpu_has_avx512() -> bool:
    """Whether this CPU has the AVX512 that OpenVINO's kernels want."""
    return "avx512f" in _cpu_flags()


def _cpu_flags() -> list[str]:
    return Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
