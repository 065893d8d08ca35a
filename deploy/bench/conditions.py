"""What a figure was measured on: without it a number means nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "openvino", "openvino-genai", "nvidia-pytriton", "tritonclient")


def conditions() -> dict[str, str]:
    """Processor, cores, memory, interpreter and package versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    model = names[0] if names else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": f"{model}, {os.cpu_count()} virtual cores",
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
        **{package: found for package in PACKAGES if (found := _version(package))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
