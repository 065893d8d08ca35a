"""The build of a TensorRT-LLM recipe from end to end: everything is real but trtllm-build and the GPU.

Their stand-ins build nothing: what comes out has the shape of engines and would not run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from toolchain import build_recipe, load_recipe
from toolchain.engine.tensorrt.stamp import read_engine
from toolchain.errors import ToolchainError, UsageError
from toolchain.pipeline.artifact import Artifact
from toolchain.pipeline.build import Built
from toolchain.pipeline.launch import render_launch
from toolchain.pipeline.serve import serve_artifact

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
STAND_INS = ROOT / "tests/unit/toolchain/engine/tensorrt/trtllm_build/stand_in"
GPU_RECIPE = (
    "name=trt",
    "engine.flavour=tensorrt",
    "engine.gpu=h100",
    "parallelism.tensor=2",
    "parallelism.pipeline=2",
    "engine.max_seq_len=null",
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an H100 and a trtllm-build, as far as this test can tell."""
    tools = tmp_path / "bin"
    tools.mkdir()
    script = STAND_INS / "trtllm_build.py"
    for name, line in (
        ("trtllm-build", f'PYTHONPATH={ROOT} exec {sys.executable} {script} "$@"'),
        ("nvidia-smi", 'echo "NVIDIA H100 80GB HBM3, 9.0"'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("LLMBUILD_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def build(machine: Path, *overrides: str) -> Built:
    recipe = load_recipe(ROOT / "configs" / "demo-bf16.yaml", [*GPU_RECIPE, *overrides])
    return build_recipe(recipe, out=machine / "artifacts")


def outcomes(built: Built) -> dict[str, str]:
    return {result.stage.name: result.outcome for result in built.results}


@pytest.mark.slow
def test_from_model_to_repository(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(machine)
    assert built.complete
    artifact = Artifact.open(built.artifact)
    engine = artifact.dir("engine")
    assert read_engine(engine).world_size == 4
    assert {path.name for path in engine.glob("rank*.engine")} == {f"rank{n}.engine" for n in range(4)}
    built_for = json.loads((engine / "config.json").read_text())["build_config"]
    source = json.loads((artifact.dir("quantize") / "config.json").read_text())
    assert built_for["max_seq_len"] == source["max_position_embeddings"]  # as an absent max_seq_len says
    record = artifact.manifest.stages["engine"].record
    assert record.arch == "sm_90"
    assert record.tools == {"tensorrt-llm": "1.2.1", "tensorrt": "10.14.1.48"}
    config = json.loads((artifact.dir("convert") / "config.json").read_text())
    assert config["mapping"]["world_size"] == 4
    assert (artifact.dir("repository") / "tensorrt_llm/1/engine/rank3.engine").is_file()

    # How it is built is no part of the key; what is served is not built again for it.
    assert set(outcomes(build(machine, "engine.build.workers=1")).values()) == {"cached"}
    served = outcomes(build(machine, "deploy.max_queue_size=7"))
    assert {name for name, outcome in served.items() if outcome == "run"} == {"repository"}
    again = outcomes(build(machine, "engine.build.max_beam_width=2"))
    assert next(name for name, outcome in again.items() if outcome == "run") == "engine"

    with pytest.raises(ToolchainError, match="are of TensorRT-LLM 1"):
        render_launch(built.artifact, "local", image="nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3")
    (machine / "bin" / "nvidia-smi").write_text('#!/bin/sh\necho "NVIDIA L40S, 8.9"\n')
    with (
        pytest.raises(ToolchainError, match=r"for sm_90 \(built on NVIDIA H100"),
        serve_artifact(built.artifact),
    ):
        pass


def test_a_timing_cache_that_is_not_there_stops_before_any_work(machine: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        build(machine, "engine.build.input_timing_cache=./nowhere.cache")
    assert not (machine / "store").exists()
