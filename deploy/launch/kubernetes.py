"""`kubernetes`: a Deployment for one node, a LeaderWorkerSet for several; with Service and ConfigMap.

The model repository is a PersistentVolumeClaim. Ranks of TensorRT-LLM on several nodes meet by mpirun over
ssh, with a key from a Secret; vLLM's by Ray.
"""

from __future__ import annotations

from typing import Any

import yaml

from deploy.launch.local import container_command
from deploy.launch.plan import REPOSITORY, SCRIPTS, Launch
from deploy.launch.serve_script import SERVE, serve_script

MANIFEST = "manifest.yaml"
MPI_NODE = "mpi-node.sh"
SSH_KEYS = "/ssh"
SSH_PORT = 2222
LWS_API = "leaderworkerset.x-k8s.io/v1"
WORKER_INDEX = "leaderworkerset.sigs.k8s.io/worker-index"
START_S = 3600
"""Loading may take so long: large engines come over the network first."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes scripts as blocks, and never uses anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def kubernetes(launch: Launch, *, claim: str | None = None) -> dict[str, str]:
    """The manifest for `kubectl apply`. By name.

    Args:
        launch: what it serves.
        claim: the PersistentVolumeClaim whose root is the model repository; None: NAME-repository.

    Raises:
        UsageError: no container is known, or the ranks cannot be spread over nodes.
    """
    name = resource_name(launch.name)
    claim = claim or f"{name}-repository"
    over_ssh = launch.nodes > 1 and launch.flavour != "vllm"
    _, under_mpi = container_command(launch)
    scripts = {SERVE: serve_script(launch, under_mpi=under_mpi or launch.nodes > 1)}
    if over_ssh:
        scripts[MPI_NODE] = _mpi_node_script(launch)
    documents = [
        _resource("v1", "ConfigMap", f"{name}-launch", name, data=scripts),
        _service(launch, name),
        _workers(launch, name, claim) if launch.nodes > 1 else _deployment(launch, name, claim),
    ]
    head = [
        f"# Serves {launch.name} ({launch.flavour}) on {launch.nodes} node(s). Written by llmbuild.",
        f"# The PersistentVolumeClaim {claim} holds the files of {launch.repository} at its root.",
    ]
    if launch.nodes > 1:
        head.append(f"# The cluster needs LeaderWorkerSet ({LWS_API}).")
    if over_ssh:
        head += [
            "# Its nodes speak ssh, whose server the image must have. Their key, once:",
            "#   ssh-keygen -t ed25519 -N '' -f key",
            f"#   kubectl create secret generic {name}-ssh --from-file=key --from-file=key.pub",
        ]
    body = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)
    return {MANIFEST: "\n".join(head) + "\n" + body}


def resource_name(name: str) -> str:
    """`name` as Kubernetes allows it: letters, digits and dashes, at most 40, so that suffixes fit."""
    return name.replace("_", "-").replace(".", "-")[:40].strip("-")


def _resource(api: str, kind: str, name: str, app: str, **content: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": app, "app.kubernetes.io/managed-by": "llmbuild"}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": labels}, **content}


def _service(launch: Launch, name: str) -> dict[str, Any]:
    leader = {WORKER_INDEX: "0"} if launch.nodes > 1 else {}
    ports = [{"name": use, "port": port, "targetPort": use} for use, port in _ports(launch).items()]
    selector = {"app.kubernetes.io/name": name} | leader
    # LeaderWorkerSet makes a headless service of its own name for its pods.
    return _resource("v1", "Service", f"{name}-server", name, spec={"selector": selector, "ports": ports})


def _deployment(launch: Launch, name: str, claim: str) -> dict[str, Any]:
    command, _ = container_command(launch)
    labels = {"app.kubernetes.io/name": name}
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # there are no GPUs for two at a time
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": _pod(launch, name, claim, command, serves=True),
        },
    }
    return _resource("apps/v1", "Deployment", name, name, spec=spec)


def _workers(launch: Launch, name: str, claim: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": name}
    script = SERVE if launch.flavour == "vllm" else MPI_NODE
    command = ["bash", f"{SCRIPTS}/{script}"]
    templates = {
        kind: {
            "metadata": {"labels": labels},
            "spec": _pod(launch, name, claim, command, serves=kind == "leaderTemplate"),
        }
        for kind in ("leaderTemplate", "workerTemplate")
    }
    group = {"size": launch.nodes, "restartPolicy": "RecreateGroupOnPodRestart", **templates}
    spec = {"replicas": 1, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": group}
    return _resource(LWS_API, "LeaderWorkerSet", name, name, spec=spec)


def _pod(launch: Launch, name: str, claim: str, command: list[str], *, serves: bool) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": "repository", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
        {"name": "launch", "configMap": {"name": f"{name}-launch"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{launch.shm_gib}Gi"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "repository", "mountPath": REPOSITORY, "readOnly": True},
        {"name": "launch", "mountPath": SCRIPTS, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for index, path in enumerate(launch.paths):
        volumes.append({"name": f"path-{index}", "hostPath": {"path": path}})
        mounts.append({"name": f"path-{index}", "mountPath": path, "readOnly": True})
    if launch.nodes > 1 and launch.flavour != "vllm":
        volumes.append({"name": "ssh", "secret": {"secretName": f"{name}-ssh", "defaultMode": 0o400}})
        mounts.append({"name": "ssh", "mountPath": SSH_KEYS, "readOnly": True})
    container: dict[str, Any] = {
        "name": "server",
        "image": launch.require_image(),
        "command": command,
        "workingDir": REPOSITORY,
        "resources": {
            "requests": {"cpu": str(4 * launch.gpus_each), "memory": f"{_memory_gib(launch)}Gi"},
            "limits": {"nvidia.com/gpu": launch.gpus_each},
        },
        "volumeMounts": mounts,
    }
    if serves:
        container["ports"] = [{"name": use, "containerPort": p} for use, p in _ports(launch).items()]
        container |= _probes()
    return {
        "terminationGracePeriodSeconds": launch.drain_s + 10,
        "containers": [container],
        "volumes": volumes,
    }


def _probes() -> dict[str, Any]:
    def look(path: str, period: int, failures: int) -> dict[str, Any]:
        get = {"path": path, "port": "http"}
        return {"httpGet": get, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5}

    return {
        "startupProbe": look("/v2/health/ready", 10, START_S // 10),
        "readinessProbe": look("/v2/health/ready", 5, 2),
        "livenessProbe": look("/v2/health/live", 10, 6),
    }


def _ports(launch: Launch) -> dict[str, int]:
    return {"http": launch.http_port, "grpc": launch.grpc_port, "metrics": launch.metrics_port}


def _memory_gib(launch: Launch) -> int:
    """Host memory that a node asks for: its part of the weights on their way to the GPUs, and the server."""
    return -(-launch.repository_bytes // (2**30 * launch.nodes)) + launch.shm_gib + 8


def _mpi_node_script(launch: Launch) -> str:
    """The first pod of a group runs mpirun over the others, which run an ssh server."""
    return f"""\
#!/usr/bin/env bash
# One node of {launch.name}: the first runs mpirun, the others wait for it. Written by llmbuild.
set -euo pipefail
install -d -m 700 /root/.ssh
install -d -m 755 /run/sshd
install -m 600 {SSH_KEYS}/key /root/.ssh/id_ed25519
install -m 600 {SSH_KEYS}/key.pub /root/.ssh/authorized_keys
if [ "$LWS_WORKER_INDEX" != 0 ]; then
  exec /usr/sbin/sshd -D -e -p {SSH_PORT} -h /root/.ssh/id_ed25519
fi
options=(-p {SSH_PORT} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR)
hosts="$HOSTNAME:{launch.mpi_processes_each}"
for index in $(seq 1 $((LWS_GROUP_SIZE - 1))); do
  worker="$HOSTNAME-$index.${{LWS_LEADER_ADDRESS#*.}}"
  until ssh "${{options[@]}}" "$worker" true; do sleep 2; done
  hosts="$hosts,$worker:{launch.mpi_processes_each}"
done
# By its whole path mpirun tells the other nodes where it is.
exec "$(command -v mpirun)" --allow-run-as-root -n {launch.mpi_processes} --host "$hosts" \\
  --mca plm_rsh_args "${{options[*]}}" bash {SCRIPTS}/{SERVE}
"""
