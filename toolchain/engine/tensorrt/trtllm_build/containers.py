"""A command in NVIDIA's container, by docker or podman. Paths are the same inside and outside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def container_command(
    engine: str,
    image: str,
    command: Sequence[str],
    *,
    name: str,
    read: Sequence[Path],
    write: Path,
    devices: str | None = None,
) -> list[str]:
    """The command line that runs `command` in `image` with all GPUs, and leaves no container behind.

    Args:
        engine: docker or podman.
        image: with its tag.
        command: what to run, in `write`.
        name: of the container, by which it can be removed.
        read: directories to see.
        write: the directory to write to.
        devices: CUDA_VISIBLE_DEVICES; None for all GPUs.
    """
    mounts = [f"type=bind,src={path},dst={path},readonly" for path in read]
    mounts.append(f"type=bind,src={write},dst={write}")
    environment = ["PYTHONUNBUFFERED=1", "HOME=/tmp"]
    environment += [] if devices is None else [f"CUDA_VISIBLE_DEVICES={devices}"]
    # What it writes belongs to who runs this: podman's root is that user, docker's root is everybody's.
    own = (
        ["--gpus", "all", "--user", f"{os.getuid()}:{os.getgid()}"]
        if engine == "docker"
        else ["--device", "nvidia.com/gpu=all", "--security-opt", "label=disable"]
    )
    return [
        engine, "run", "--rm", "--init", "--name", name, *own,
        "--ipc", "host", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864",
        *(part for variable in environment for part in ("--env", variable)),
        *(part for mount in mounts for part in ("--mount", mount)),
        "--workdir", str(write), image, *command,
    ]  # fmt: skip


def remove_container(engine: str, name: str) -> None:
    """Kill and remove a container, if it is still there: a killed client leaves it running."""
    subprocess.run(
        [engine, "rm", "--force", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def unusable(engine: str) -> str | None:
    """Why the container engine cannot be used here, in its own words; None when it can."""
    query = [engine, "version", "--format", "{{.Server.Version}}" if engine == "docker" else "{{.Version}}"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return f"there is no {engine} on PATH"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if answer.returncode == 0:
        return None
    lines = (answer.stderr or answer.stdout).strip().splitlines()
    return lines[-1] if lines else f"{engine} version ended with {answer.returncode}"
