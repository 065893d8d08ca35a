"""`serve.sh`: one process of the server, in the container or wherever tritonserver is.

It changes into the model repository first: paths that an engine takes as they are, are relative to it.
"""

from __future__ import annotations

from deploy.launch.plan import REPOSITORY, Launch

SERVE = "serve.sh"
RAY_PORT = 6379
RANK = "${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-0}}"


def serve_script(launch: Launch, *, under_mpi: bool) -> str:
    """The script.

    Args:
        launch: what it serves.
        under_mpi: mpirun or srun starts it `mpi_processes` times; or else it is started once.
    """
    lines = [
        "#!/usr/bin/env bash",
        f"# One server process of {launch.name} ({launch.flavour}). Written by llmbuild.",
        "set -euo pipefail",
        f'repository="${{REPOSITORY:-{REPOSITORY}}}"',
        'cd "$repository"  # paths in it are relative',
    ]
    spread = under_mpi and launch.mpi_processes > 1
    rank = f"${{LWS_WORKER_INDEX:-{RANK}}}" if launch.flavour == "vllm" else RANK
    lines.append(f'rank="{rank}"' if spread else "rank=0")
    if launch.flavour == "vllm" and launch.nodes > 1:
        lines += _join_ray(launch)
    lines += _arguments(launch)
    if launch.flavour == "tensorrt":
        lines += _tensorrt(launch, spread=spread)
    command = 'tritonserver "${arguments[@]}"'
    if launch.flavour == "pytorch" and spread:
        command = f"trtllm-llmapi-launch {command}"  # runs it on rank 0, and workers elsewhere
    return "\n".join([*lines, f"exec {command}"]) + "\n"


def _arguments(launch: Launch) -> list[str]:
    return [
        "arguments=(",
        '  --model-repository="$repository"',
        f"  --http-port={launch.http_port}",
        f"  --grpc-port={launch.grpc_port}",
        f"  --metrics-port={launch.metrics_port}",
        f"  --exit-timeout-secs={launch.drain_s}",
        "  --disable-auto-complete-config",
        '  "--backend-config=python,shm-region-prefix-name=rank${rank}_"',
        ")",
    ]


def _tensorrt(launch: Launch, *, spread: bool) -> list[str]:
    lines = []
    if launch.orchestrator:
        spawned = launch.participants == 0
        lines += [
            "export TRTLLM_ORCHESTRATOR=1",
            f"export TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES={int(spawned)}",
        ]
        if spawned:
            pools = " ".join(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(launch.gpus_each))
            lines.append(f"arguments+=(--pinned-memory-pool-byte-size=0 --enable-peer-access=false {pools})")
    if spread:
        loads = " ".join(f"--load-model={model}" for model in launch.engine_models)
        lines += [
            'if [ "$rank" != 0 ]; then  # ranks but the first load the engine alone, and open no port',
            f"  arguments+=(--model-control-mode=explicit {loads})",
            "fi",
        ]
    return lines


def _join_ray(launch: Launch) -> list[str]:
    """vLLM finds the GPUs of other nodes through Ray; Triton runs on the first."""
    return [
        'head="${HEAD_ADDRESS:-${LWS_LEADER_ADDRESS:?HEAD_ADDRESS is to be that of the first node}}"',
        'if [ "$rank" != 0 ]; then',
        f'  exec ray start --address="$head:{RAY_PORT}" --num-gpus={launch.gpus_each} --block',
        "fi",
        f"ray start --head --port={RAY_PORT} --num-gpus={launch.gpus_each}",
    ]
