"""Predicted bytes beside those of real files: checkpoint, a file a rank, OpenVINO's IR, of the demo model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quantize.run import quantize_checkpoint
from toolchain.engine.openvino import build_ir
from toolchain.engine.tensorrt.convert import RankLayout, convert
from toolchain.model.spec import load_spec
from toolchain.plan import ranks
from toolchain.plan.openvino import ir_bytes
from toolchain.plan.stored import PlannedWeights, planned_weights
from toolchain.progress import Silent
from toolchain.recipe.quantization import Quantization

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[4] / "models" / "demo"
METHODS = ("none", "int4_wo", "fp8_rowwise")


@pytest.fixture(scope="module", params=METHODS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PlannedWeights]:
    """The demo model quantized, and the weights that the plan foresees."""
    torch.set_num_threads(1)
    method, directory = request.param, tmp_path_factory.mktemp("files")
    config = {"method": method, "dtype": "auto", "format": "modelopt", "device": "cpu"}
    if method != "none":
        config |= {"exclude": ["lm_head"], "overrides": []}
    if method == "int4_wo":
        config |= {"group_size": 64, "symmetric": True}
    quantize_checkpoint(DEMO, directory / "made", directory / "work", config=config)
    quant = Quantization.model_validate({"method": method, "group_size": 64})
    return directory / "made", planned_weights(load_spec(DEMO), quant, "tensorrt")


def size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


def test_the_checkpoint(made: tuple[Path, PlannedWeights]) -> None:
    directory, weights = made
    assert weights.stored.total == pytest.approx(size(*directory.glob("*.safetensors")), rel=0.05)


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2)])
def test_every_rank(made: tuple[Path, PlannedWeights], tensor: int, pipeline: int, tmp_path: Path) -> None:
    directory, weights = made
    layout = RankLayout(tensor, pipeline)
    convert(directory, tmp_path / "ranks", tmp_path / "work", layout=layout, progress=Silent())
    spec = load_spec(DEMO)
    stages = ranks.stage_weights(spec, weights.layers, tensor, pipeline, flavour="tensorrt")
    predicted = [stage.total for stage in stages for _ in range(tensor)]
    found = [size(tmp_path / "ranks" / f"rank{rank}.safetensors") for rank in range(tensor * pipeline)]
    assert predicted == pytest.approx(found, rel=0.05)


def test_the_ir(made: tuple[Path, PlannedWeights], tmp_path: Path) -> None:
    directory, weights = made
    build_ir(directory, tmp_path / "ir")
    predicted = ir_bytes(load_spec(DEMO), weights.stored, weights.assigned)
    assert predicted == pytest.approx(size(tmp_path / "ir" / "openvino_model.bin"), rel=0.05)
