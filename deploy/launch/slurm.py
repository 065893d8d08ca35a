"""`slurm`: a batch script that runs NVIDIA's container by Pyxis, one task a server process."""

from __future__ import annotations

import shlex

from deploy.launch.local import container_command
from deploy.launch.plan import REPOSITORY, SCRIPTS, Launch
from deploy.launch.serve_script import SERVE, serve_script

JOB = "job.sbatch"


def slurm(launch: Launch) -> dict[str, str]:
    """Files for `sbatch`; they and the repository lie where every node sees them. By name.

    Raises:
        UsageError: no container is known, or the ranks cannot be spread over nodes.
    """
    # A server that spawns its workers has them from mpirun, which must not ask Slurm for them.
    spawns = launch.orchestrator and launch.participants == 0
    command = ["bash", f"{SCRIPTS}/{SERVE}"]
    if spawns:
        inside, _ = container_command(launch)
        command = [inside[0], "--mca", "plm", "isolated", "--mca", "ras", "^slurm", *inside[1:]]
    image = pyxis_image(launch.require_image())
    options = [
        f"--job-name={launch.name}",
        f"--nodes={launch.nodes}",
        f"--ntasks={launch.mpi_processes}",
        f"--ntasks-per-node={launch.mpi_processes_each}",
        f"--gpus-per-node={launch.gpus_each}",
        f"--signal=TERM@{launch.drain_s + 10}",
    ]
    mounts = [
        f"{launch.repository}:{REPOSITORY}:ro",
        *(f"{place}:{place}:ro" for place in launch.paths),
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {shlex.quote(option)}" for option in options),
        f"# Serves {launch.name} ({launch.flavour}). Written by llmbuild; submit it from its own directory.",
        "# srun needs Pyxis for the container, and PMIx for its ranks.",
        "set -euo pipefail",
        'here="${SLURM_SUBMIT_DIR:-$PWD}"',
        'HEAD_ADDRESS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        "export HEAD_ADDRESS",
        'echo "serving at $HEAD_ADDRESS:'
        f'{launch.http_port} (HTTP) and :{launch.grpc_port} (gRPC) once it is ready"',
        "srun --mpi=pmix --kill-on-bad-exit=1 \\",
        f"  {shlex.quote(f'--container-image={image}')} \\",
        f'  --container-mounts={shlex.quote(",".join(mounts))},"$here":{SCRIPTS}:ro \\',
        f"  --container-workdir={REPOSITORY} \\",
        f"  {shlex.join(command)}",
    ]
    return {JOB: "\n".join(lines) + "\n", SERVE: serve_script(launch, under_mpi=True)}


def pyxis_image(image: str) -> str:
    """A container's name as Pyxis wants it: registry#path; without a registry it is Docker Hub's."""
    registry, slash, path = image.partition("/")
    is_host = slash and ("." in registry or ":" in registry or registry == "localhost")
    return f"{registry}#{path}" if is_host else image
