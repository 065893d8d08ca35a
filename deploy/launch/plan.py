"""`Launch`: the facts from which every target's files are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolchain.errors import UsageError

REPOSITORY = "/repository"
"""Where a container sees the model repository."""

SCRIPTS = "/launch"
"""Where a container sees the scripts beside the launcher."""


@dataclass(frozen=True)
class Launch:
    """One server of one artifact.

    Args:
        name: of the artifact.
        artifact: its directory on this machine.
        flavour: the engine's.
        repository: the model repository on this machine.
        repository_bytes: its size.
        image: the container that runs it; None for the openvino flavour, which needs none.
        ranks: processes that share one copy of the model, one on a GPU each.
        instances: copies of the model.
        gpus_per_node: of a node that has enough of them.
        orchestrator: tensorrt: one server process, whose workers it spawns or is given.
        participants: tensorrt: workers that the orchestrator does not spawn.
        engine_models: tensorrt: the models that every rank loads.
        vllm_arguments: of vLLM's engine.
        paths: absolute paths beyond the repository that the server reads where it runs.
        host: address that `local` publishes the ports on.
        http_port, grpc_port, metrics_port: of the server.
        drain_s: seconds that running requests get when it stops.
    """

    name: str
    artifact: Path
    flavour: str
    repository: Path
    repository_bytes: int
    image: str | None
    ranks: int = 1
    instances: int = 1
    gpus_per_node: int = 8
    orchestrator: bool = False
    participants: int = 0
    engine_models: tuple[str, ...] = ("tensorrt_llm",)
    vllm_arguments: Mapping[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    drain_s: int = 30

    @property
    def gpus(self) -> int:
        """Of all nodes together."""
        return 0 if self.flavour == "openvino" else self.ranks * self.instances

    @property
    def nodes(self) -> int:
        """Machines that the ranks are spread over.

        Raises:
            UsageError: they cannot be spread evenly.
        """
        nodes = -(-self.gpus // self.gpus_per_node) or 1
        if self.gpus % nodes or (nodes > 1 and self.instances > 1):
            raise UsageError(
                f"{self.gpus} GPUs cannot be spread over nodes of {self.gpus_per_node}",
                where="--gpus-per-node",
                why="each node gets the same number of ranks, and several instances share one node",
                fix="give the number of GPUs that each node has",
            )
        return nodes

    @property
    def gpus_each(self) -> int:
        """GPUs of each node."""
        return self.gpus // self.nodes

    @property
    def mpi_processes(self) -> int:
        """Server processes under mpirun or srun."""
        if self.flavour == "vllm":
            return self.nodes
        if self.flavour == "tensorrt" and self.orchestrator:
            return 1 + self.participants
        return self.ranks

    @property
    def mpi_processes_each(self) -> int:
        """Of these, the ones on each node."""
        return -(-self.mpi_processes // self.nodes)

    @property
    def shm_gib(self) -> int:
        """Shared memory, in GiB: tensors between Triton and its Python models, and NCCL's buffers."""
        return 8 + 2 * self.gpus_each

    def require_image(self) -> str:
        """The container. Raises UsageError where none is known."""
        if self.image is None:
            raise UsageError(
                f"no container is known that serves {self.name}",
                where="--image",
                why="the openvino flavour has none, and of pre-releases NVIDIA publishes none with Triton",
                fix="give one with --image, or use --target local or mpirun",
            )
        return self.image
