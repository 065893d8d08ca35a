"""The NVIDIA GPUs of this machine, and the architecture that engines are built for."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from toolchain.data import load_table

QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
"""Prints a line `name, major.minor` for each GPU."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Args:
        name: as the driver calls it.
        sm: compute capability x 10.
    """

    name: str
    sm: int


def installed_gpus() -> list[Gpu]:
    """Those of this machine; empty where there is none, or no driver."""
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(answer.stdout) if answer.returncode == 0 else []


def parse_gpus(text: str) -> list[Gpu]:
    """What `QUERY` prints; lines of another form are passed over."""
    found = []
    for line in text.splitlines():
        name, _, capability = line.rpartition(", ")
        major, _, minor = capability.strip().partition(".")
        if name and major.isdecimal() and minor.isdecimal():
            found.append(Gpu(name.strip(), int(major) * 10 + int(minor)))
    return found


def known_sm(gpu: str | None) -> int | None:
    """Compute capability x 10 of a row of `data/gpus.yaml`; None for any other."""
    facts = load_table("gpus").get(gpu or "")
    return None if facts is None else int(facts["sm"])


def architecture(sm: int) -> str:
    """As a stage's key has it: sm_90."""
    return f"sm_{sm}"


def sm_of(arch: str | None) -> int:
    """The number in what `architecture` gives. Raises ValueError for anything else."""
    return int((arch or "").removeprefix("sm_"))
