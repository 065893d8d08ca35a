"""What serving needs on this machine, looked at one by one: for `llmbuild doctor`."""

from __future__ import annotations

import os
from dataclasses import dataclass

from deploy.find import HostPython, find_triton, prepare
from deploy.shm import COMFORTABLE, FIX, free_shared_memory
from toolchain.errors import LlmbuildError


@dataclass(frozen=True)
class Fact:
    """One thing that serving needs: what, whether it is there, what was found, how to get it if it is not."""

    what: str
    ok: bool
    found: str
    fix: str = ""


def diagnose(tritonserver: str | os.PathLike[str] | None = None) -> list[Fact]:
    """Facts on Triton, on its Python backend with the running Python, and on shared memory; never raises.

    Everything that a start would need is tried except the start itself.
    """
    facts = [_shared_memory()]
    try:
        triton = find_triton(tritonserver)
    except LlmbuildError as error:
        return [_absent("Triton", error), *facts]
    version = f", {triton.version}" if triton.version else ""
    facts.insert(0, Fact("Triton", True, f"{triton.binary} ({triton.found_by}{version})"))
    try:
        runtime = prepare(triton)
    except LlmbuildError as error:
        return [*facts, _absent("Triton's Python backend", error)]
    backends = sorted(p.name for p in runtime.backends.iterdir() if p.is_dir()) if runtime.backends else []
    if "python" in backends:
        python = f" for Python {HostPython.current().version}" if triton.wheel else ""
        facts.append(Fact("Triton's Python backend", True, f"{runtime.backends}{python}"))
    else:
        found = f"not in {runtime.backends}" if runtime.backends else "the server's own directory is unknown"
        facts.append(
            Fact("Triton's Python backend", False, found, "use a Triton that has the Python backend")
        )
    return facts


def _absent(what: str, error: LlmbuildError) -> Fact:
    return Fact(what, False, f"{error.what}: {error.why}" if error.why else error.what, error.fix or "")


def _shared_memory() -> Fact:
    free = free_shared_memory()
    return Fact("shared memory", free >= COMFORTABLE, f"{free >> 20} MiB free in /dev/shm", FIX)
