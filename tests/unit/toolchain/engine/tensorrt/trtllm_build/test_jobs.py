"""The scripts for clusters: golden, and read back by what will read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from toolchain.engine.tensorrt.trtllm_build.jobs import build_script, kubernetes_job, slurm_job

GOLDEN = Path(__file__).parents[5] / "golden" / "trtllm_build"
STORE = Path("/srv/store of llmbuild")
WORK = STORE / "work" / "0123456789abcdef"
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"

SCRIPT = build_script(
    ["trtllm-build", "--checkpoint_dir", f"{STORE}/ranks", "--output_dir", f"{WORK}/engine.partial.job"],
    WORK,
    WORK / "engine.partial.job",
    WORK / "engine",
)
SLURM = slurm_job("llmbuild-0123", WORK, STORE, gpus=4, image=IMAGE, timeout_minutes=90)
KUBERNETES = kubernetes_job(
    "llmbuild-0123", WORK, STORE, gpus=4, image=IMAGE, claim="models", timeout_minutes=90, user=(1000, 100)
)


@pytest.mark.parametrize(
    ("name", "text"), [("build.sh", SCRIPT), ("job.sbatch", SLURM), ("job.yaml", KUBERNETES)]
)
def test_scripts_are_the_golden_ones(name: str, text: str) -> None:
    assert text == (GOLDEN / name).read_text()


@pytest.mark.parametrize("text", [SCRIPT, SLURM])
def test_bash_reads_the_scripts(text: str) -> None:
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "-"], input=text, text=True, capture_output=True, check=False)
        assert checked.stdout == ""


def test_a_script_without_container_and_limit() -> None:
    text = slurm_job("n", WORK, STORE, gpus=1, image=None, timeout_minutes=None)
    assert "container" not in text
    assert "--time" not in text
    assert text.splitlines()[-1] == f"srun bash '{WORK}/build.sh'"


@pytest.mark.parametrize(
    ("image", "pyxis"),
    [("nvcr.io/nvidia/x:1", "nvcr.io#nvidia/x:1"), ("ours/x:1", "ours/x:1"), ("x:1", "x:1")],
)
def test_an_image_of_a_registry_is_written_as_pyxis_wants_it(image: str, pyxis: str) -> None:
    text = slurm_job("n", WORK, STORE, gpus=1, image=image, timeout_minutes=None)
    assert f"--container-image={pyxis}" in text.replace("'", "")


@pytest.mark.parametrize("version", ["1.29", "1.35"])
def test_the_job_is_valid_by_the_schema_of_kubernetes(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="the schemas of Kubernetes are not here")
    validator.validate(yaml.safe_load(KUBERNETES), version, strict=True)


def test_the_job_fits_together() -> None:
    job = yaml.safe_load(KUBERNETES)
    assert job["spec"]["activeDeadlineSeconds"] == 5400
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", job["metadata"]["name"])
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_without_a_claim_the_node_has_the_store() -> None:
    text = kubernetes_job(
        "n", WORK, STORE, gpus=1, image=IMAGE, claim=None, timeout_minutes=None, user=(0, 0)
    )
    volume = yaml.safe_load(text)["spec"]["template"]["spec"]["volumes"][0]
    assert volume == {"name": "store", "hostPath": {"path": str(STORE), "type": "Directory"}}
