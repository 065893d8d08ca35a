"""`local` and `mpirun`: shell scripts for one machine with a container engine, or for hosts that have MPI."""

from __future__ import annotations

import shlex

from deploy.launch.plan import REPOSITORY, SCRIPTS, Launch
from deploy.launch.serve_script import SERVE, serve_script
from deploy.repositories.vllm import serve_command
from toolchain.errors import UsageError

LAUNCH = "launch.sh"
VLLM_SERVE = "vllm-serve.sh"


def local(launch: Launch) -> dict[str, str]:
    """Files that serve on this machine: by llmbuild itself, or in NVIDIA's container. By name.

    Raises:
        UsageError: it needs several machines, or no container is known.
    """
    if launch.flavour == "openvino":
        return {LAUNCH: _by_llmbuild(launch)}
    if launch.nodes > 1:
        raise UsageError(
            f"{launch.name} needs {launch.nodes} nodes",
            where="--target local",
            why=f"it has {launch.gpus} ranks, and a node {launch.gpus_per_node} GPUs",
            fix="use --target mpirun, slurm or kubernetes, or give --gpus-per-node",
        )
    inside, under_mpi = container_command(launch)
    options = [
        "--rm",
        f"--name={launch.name}",
        f"--gpus={launch.gpus}",
        f"--shm-size={launch.shm_gib}g",
        "--ulimit=memlock=-1",
        "--ulimit=stack=67108864",
        f"--stop-timeout={launch.drain_s + 10}",
        f"--workdir={REPOSITORY}",
    ]
    for port in (launch.http_port, launch.grpc_port, launch.metrics_port):
        options.append(f"--publish={launch.host}:{port}:{port}")
    options += [f"--volume={path}:{path}:ro" for path in launch.paths]
    words = [shlex.quote(option) for option in options]
    words += [f'--volume="$repository":{REPOSITORY}:ro', f'--volume="$here":{SCRIPTS}:ro']
    words += [shlex.quote(launch.require_image()), *map(shlex.quote, inside)]
    lines = [
        *_head(launch, "in NVIDIA's container; CONTAINER=podman runs podman instead of docker"),
        'exec "${CONTAINER:-docker}" run \\\n  ' + " \\\n  ".join(words),
    ]
    files = {LAUNCH: "\n".join(lines) + "\n", SERVE: serve_script(launch, under_mpi=under_mpi)}
    return files | ({VLLM_SERVE: _plain_vllm(launch)} if launch.flavour == "vllm" else {})


def container_command(launch: Launch) -> tuple[list[str], bool]:
    """What one container on one node runs, and whether MPI starts the processes therein."""
    serve = ["bash", f"{SCRIPTS}/{SERVE}"]
    if launch.flavour != "tensorrt" or (launch.mpi_processes == 1 and not launch.orchestrator):
        return serve, False  # the LLM API and vLLM start their own workers
    return ["mpirun", "--allow-run-as-root", "-n", str(launch.mpi_processes), *serve], True


def mpirun(launch: Launch) -> dict[str, str]:
    """Files that serve by mpirun, where tritonserver is on PATH of every host. By name.

    Raises:
        UsageError: the flavour has no use for MPI.
    """
    if launch.flavour == "openvino":
        raise UsageError(
            "the openvino flavour runs in one process",
            where="--target mpirun",
            fix="use --target local",
        )
    exported = ["REPOSITORY", *(["HEAD_ADDRESS"] if launch.flavour == "vllm" and launch.nodes > 1 else [])]
    command = [
        "mpirun",
        "--allow-run-as-root",
        "-n",
        str(launch.mpi_processes),
        "--map-by",
        f"ppr:{launch.mpi_processes_each}:node",
        *(word for name in exported for word in ("-x", name)),
    ]
    lines = [
        *_head(launch, f"by mpirun on {launch.nodes} node(s); HOSTFILE names the hosts"),
        'export REPOSITORY="$repository"  # the same path on every host, as this directory is',
        "hosts=()",
        'if [ -n "${HOSTFILE:-}" ]; then hosts=(--hostfile "$HOSTFILE"); fi',
        'cd "$repository"  # where workers that a server spawns start, too',
        f'exec {shlex.join(command)} ${{hosts[@]+"${{hosts[@]}}"}} bash "$here/{SERVE}"',
    ]
    return {LAUNCH: "\n".join(lines) + "\n", SERVE: serve_script(launch, under_mpi=True)}


def _head(launch: Launch, how: str) -> list[str]:
    return [
        "#!/usr/bin/env bash",
        f"# Serves {launch.name} ({launch.flavour}) {how}. Written by llmbuild.",
        "set -euo pipefail",
        'here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"',
        f'repository="${{REPOSITORY:-{_in_quotes(str(launch.repository))}}}"',
    ]


def _plain_vllm(launch: Launch) -> str:
    """vLLM's own OpenAI server with the same arguments, without Triton, for where vLLM is installed."""
    command = serve_command(launch.vllm_arguments)
    lines = [
        *_head(launch, "by vLLM's own server, without Triton"),
        'cd "$repository"',
        f"exec {shlex.join([*command, '--host', launch.host, '--port', str(launch.http_port)])}",
    ]
    return "\n".join(line for line in lines if not line.startswith("here=")) + "\n"


def _in_quotes(text: str) -> str:
    """`text` as it stands between double quotes, inside a default value."""
    for character in '\\"$`}':
        text = text.replace(character, "\\" + character)
    return text


def _by_llmbuild(launch: Launch) -> str:
    command = [
        "llmbuild",
        "serve",
        str(launch.artifact),
        "--host",
        launch.host,
        "--http-port",
        str(launch.http_port),
        "--grpc-port",
        str(launch.grpc_port),
        "--metrics-port",
        str(launch.metrics_port),
        "--drain",
        str(launch.drain_s),
    ]
    lines = [
        "#!/usr/bin/env bash",
        f"# Serves {launch.name} (openvino) on this machine's CPU. Written by llmbuild.",
        "set -euo pipefail",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"
