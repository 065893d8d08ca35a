"""Which tools a recipe needs, which of them are here, and how to get the others."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from toolchain.engine import flavour
from toolchain.errors import LlmbuildError, ToolchainError
from toolchain.pipeline.quantization import quantize_config
from toolchain.pipeline.stage import versions
from toolchain.pipeline.stages import STAGES

if TYPE_CHECKING:
    from toolchain.recipe import Recipe


def missing_tools(recipe: Recipe, until: str | None = None) -> list[ToolchainError]:
    """What this machine lacks to build `recipe` up to stage `until` (all by default); empty when nothing."""
    last = STAGES.index(until) if until in STAGES else len(STAGES) - 1
    missing = []
    if last >= STAGES.index("quantize"):
        missing += _missing_for_quantization(recipe)
    if last >= STAGES.index("engine"):
        missing += flavour(recipe.engine.flavour).missing(recipe)
    return missing


def _missing_for_quantization(recipe: Recipe) -> list[ToolchainError]:
    quant, where = recipe.quantization, "quantization.provider"
    if quant.provider == "native" or not quant.methods:
        return []
    from quantize.providers.modelopt import INSTALL, unsupported

    missing = []
    if problems := unsupported(quantize_config(quant, recipe.engine.flavour)):
        missing.append(
            ToolchainError(
                f"ModelOpt cannot quantize as the recipe says: not available are {'; '.join(problems)}",
                where=where,
                fix="use provider: native",
            )
        )
    if versions("nvidia-modelopt")["nvidia-modelopt"] == "absent":
        missing.append(ToolchainError("nvidia-modelopt is not installed", where=where, fix=INSTALL))
    return missing


@dataclass(frozen=True)
class Finding:
    """One thing that `doctor` looked at."""

    what: str
    ok: bool
    found: str
    fix: str


def examine() -> list[Finding]:
    """Look at this machine: interpreter, memory, disk, packages, server, GPU, containers."""
    from deploy.doctor import diagnose

    return [
        Finding("Python", True, platform.python_version(), ""),
        _memory(),
        _store(),
        _package("torch", "quantizing", "pip install llmbuild"),
        _package("openvino", "the openvino flavour", "pip install 'llmbuild[openvino]'"),
        _package("openvino-genai", "the openvino flavour", "pip install 'llmbuild[openvino]'"),
        _package("tritonclient", "talking to Triton", "pip install llmbuild"),
        *(Finding(**vars(fact)) for fact in diagnose()),
        _package("nvidia-modelopt", "NVIDIA's quantizer", "pip install 'llmbuild[modelopt]'"),
        _package("tensorrt-llm", "the tensorrt and pytorch flavours", "use NVIDIA's TensorRT-LLM container"),
        _gpu(),
        _container_engine(),
    ]


def _memory() -> Finding:
    from toolchain.plan.device import host_memory
    from toolchain.plan.memory import human_bytes

    return Finding("memory", True, f"{human_bytes(host_memory())}, {os.cpu_count()} CPUs", "")


def _store() -> Finding:
    from toolchain.pipeline.store import Store
    from toolchain.plan.memory import human_bytes

    try:
        root = Store.open().root
    except LlmbuildError as error:
        return Finding("store", False, str(error.what), error.fix or "")
    free = shutil.disk_usage(root).free
    return Finding(
        "store", free > 2**30, f"{root}, {human_bytes(free)} free", "point LLMBUILD_STORE at a larger disk"
    )


def _package(name: str, purpose: str, fix: str) -> Finding:
    try:
        return Finding(name, True, version(name), "")
    except PackageNotFoundError:
        return Finding(name, False, f"absent ({purpose})", fix)


def _gpu() -> Finding:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("NVIDIA GPU", False, "absent", "build engines where the GPU is that will serve")
    lines = answer.stdout.strip().splitlines()
    found = answer.returncode == 0 and bool(lines)
    return Finding(
        "NVIDIA GPU", found, "; ".join(lines) or answer.stderr.strip(), "check the driver with nvidia-smi"
    )


def _container_engine() -> Finding:
    for name in ("docker", "podman"):
        path = shutil.which(name)
        if path:
            return Finding("container engine", True, path, "")
    return Finding("container engine", False, "absent", "install docker or podman for NVIDIA's containers")
