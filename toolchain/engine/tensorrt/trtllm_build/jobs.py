"""Scripts with which a cluster builds engines: a shell script, and the job of Slurm or Kubernetes around it.

The script builds beside the place of the result and renames at the end, so that `engine/` in the work
directory is complete whenever it exists. The paths are those of the store, which the nodes must see under the
same path.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from toolchain.engine.tensorrt.gpus import QUERY

SCRIPT = "build.sh"
SLURM_JOB = "job.sbatch"
KUBERNETES_JOB = "job.yaml"
GPUS_FILE = "gpus.csv"
LOG = "trtllm-build.log"


def build_script(command: Sequence[str], work_dir: Path, partial: Path, done: Path) -> str:
    """The shell script that runs trtllm-build on whatever node it finds itself.

    Args:
        command: trtllm-build's, which writes to `partial`.
        work_dir: where it runs.
        partial, done: the result before and after it is complete, both in `work_dir`.
    """
    quoted = shlex.quote
    return f"""\
#!/bin/bash
# Builds the engines into {done.name}/, which is complete when it exists. Written by llmbuild.
set -euo pipefail
cd {quoted(str(work_dir))}
rm -rf {quoted(str(partial))}
mkdir {quoted(str(partial))}
export PYTHONUNBUFFERED=1
{shlex.join(QUERY)} > {quoted(str(partial / GPUS_FILE))}
{shlex.join(command)} 2>&1 | tee {quoted(str(work_dir / LOG))}
mv -T {quoted(str(partial))} {quoted(str(done))}
"""


def slurm_job(
    name: str, work_dir: Path, store: Path, *, gpus: int, image: str | None, timeout_minutes: int | None
) -> str:
    """The batch script for `sbatch`. Options on sbatch's command line win over those in it.

    Args:
        name: of the job.
        work_dir: with the shell script.
        store: the directory that a container must see.
        gpus: of one node.
        image: container to run in, by Pyxis; None to run what the node has.
        timeout_minutes: limit; None for the partition's.
    """
    container: list[str] = []
    if image is not None:
        container = [f"--container-image={_enroot(image)}", f"--container-mounts={store}:{store}"]
    options = [
        f"--job-name={name}",
        "--nodes=1",
        "--ntasks=1",
        f"--gpus-per-node={gpus}",
        f"--output={work_dir / 'job.log'}",
    ]
    options += [] if timeout_minutes is None else [f"--time={timeout_minutes}"]
    lines = ["#!/bin/bash", *(f"#SBATCH {shlex.quote(option)}" for option in options)]
    if image is not None:
        lines.append("# Pyxis runs the container; without it, take the container options away.")
    lines += ["set -euo pipefail", shlex.join(["srun", *container, "bash", str(work_dir / SCRIPT)])]
    return "\n".join(lines) + "\n"


def kubernetes_job(
    name: str,
    work_dir: Path,
    store: Path,
    *,
    gpus: int,
    image: str,
    claim: str | None,
    timeout_minutes: int | None,
    user: tuple[int, int],
) -> str:
    """The Job for `kubectl apply`, in YAML.

    Args:
        name: of the job.
        work_dir: with the shell script, in the store.
        store: the directory that the container must see at the same path.
        gpus: of one node.
        image: container to run in.
        claim: the PersistentVolumeClaim that is the store; None for the node's own directory.
        timeout_minutes: limit; None for none.
        user: numbers of user and group that own the store.
    """
    volume: dict[str, Any] = {"name": "store"}
    if claim is None:
        volume["hostPath"] = {"path": str(store), "type": "Directory"}
    else:
        volume["persistentVolumeClaim"] = {"claimName": claim}
    container = {
        "name": "trtllm-build",
        "image": image,
        "command": ["bash", str(work_dir / SCRIPT)],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {"limits": {"nvidia.com/gpu": gpus}},
        "volumeMounts": [
            {"name": "store", "mountPath": str(store)},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    spec: dict[str, Any] = {"backoffLimit": 0}
    if timeout_minutes is not None:
        spec["activeDeadlineSeconds"] = timeout_minutes * 60
    spec["template"] = {
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsUser": user[0], "runAsGroup": user[1]},
            "containers": [container],
            "volumes": [volume, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        }
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
    return yaml.safe_dump(job, sort_keys=False, width=1000)


def _enroot(image: str) -> str:
    """An image as Pyxis wants it: registry#path."""
    registry, slash, path = image.partition("/")
    is_host = slash and ("." in registry or ":" in registry or registry == "localhost")
    return f"{registry}#{path}" if is_host else image
