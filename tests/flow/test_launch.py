"""`launch` on artifacts that were really built: facts of recipe and artifact arrive in what is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from toolchain import build_recipe, load_recipe
from toolchain.errors import UsageError
from toolchain.pipeline.artifact import Artifact
from toolchain.pipeline.launch import launch_of, render_launch, write_files
from toolchain.pipeline.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHANGES = {
    "pytorch": ["parallelism.tensor=2", "deploy.checkpoint=/models/demo", 'engine.version="1.1.0"'],
    "vllm": ["deploy.engine_args={enforce_eager: true}"],
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model unquantized, for both flavours that compile nothing."""
    place = tmp_path_factory.mktemp("launch")
    made = {}
    for flavour, changes in CHANGES.items():
        overrides = [f"engine.flavour={flavour}", f"name=demo-{flavour}", *changes]
        recipe = load_recipe(ROOT / "configs/demo-bf16.yaml", overrides)
        made[flavour] = build_recipe(
            recipe, out=place / "artifacts", store=Store.open(place / "store")
        ).artifact
    return made


def test_the_recipe_arrives(artifacts: dict[str, Path]) -> None:
    pytorch, vllm = (launch_of(Artifact.open(artifacts[name])) for name in ("pytorch", "vllm"))
    assert pytorch.image == "nvcr.io/nvidia/tritonserver:26.02-trtllm-python-py3"  # has 1.1.0
    assert (pytorch.ranks, pytorch.gpus, pytorch.paths) == (2, 2, ("/models/demo",))
    assert vllm.image == "nvcr.io/nvidia/tritonserver:26.08-vllm-python-py3"
    assert vllm.vllm_arguments["enforce_eager"] is True
    assert vllm.repository == artifacts["vllm"].resolve() / "repository"
    weights = (vllm.repository / "vllm_model/1/checkpoint/model.safetensors").stat().st_size
    assert weights < vllm.repository_bytes < 2 * weights


def test_ports_and_images_can_be_chosen(artifacts: dict[str, Path]) -> None:
    files = render_launch(
        artifacts["vllm"], "kubernetes", image="registry/mine:1", claim="models", http_port=9000
    )
    _, service, deployment = yaml.safe_load_all(files["manifest.yaml"])
    assert service["spec"]["ports"][0]["port"] == 9000
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry/mine:1"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "models"


def test_scripts_are_written_executable(artifacts: dict[str, Path], tmp_path: Path) -> None:
    write_files(render_launch(artifacts["vllm"], "local"), tmp_path / "a/b")
    assert os.access(tmp_path / "a/b/launch.sh", os.X_OK)
    assert "vllm serve vllm_model/1/checkpoint" in (tmp_path / "a/b/vllm-serve.sh").read_text()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write the launch files"):
        write_files({"x": "y"}, tmp_path / "file")


def test_what_cannot_be_launched_is_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no target 'nomad'"):
        render_launch(artifacts["vllm"], "nomad")
    with pytest.raises(UsageError, match="a claim is for kubernetes"):
        render_launch(artifacts["vllm"], "slurm", claim="models")
    with pytest.raises(UsageError, match=r"no (such directory|artifact)"):
        render_launch(tmp_path / "nothing", "local")
