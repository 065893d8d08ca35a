"""Engines that would not load where they are going are refused, each reason with its mend."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from toolchain.engine.tensorrt.compatible import (
    Target,
    loading_problems,
    require_loads,
    require_loads_in,
    target,
)
from toolchain.engine.tensorrt.stamp import EngineFacts, is_engine_dir, read_engine, write_stamp
from toolchain.errors import ModelError, ToolchainError, UsageError

FACTS = EngineFacts("1.2.1", 2, 2, 4, tensorrt="10.14.1.48", sm=90, gpu="NVIDIA H100 80GB HBM3")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    config = {
        "version": "1.2.1",
        "pretrained_config": {"mapping": {"world_size": 4, "tp_size": 2, "pp_size": 2, "cp_size": 1}},
        "build_config": {},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_stamp(tmp_path, FACTS)
    return tmp_path


def test_what_was_stamped_is_read(engine: Path) -> None:
    assert read_engine(engine) == FACTS
    assert is_engine_dir(engine)
    (engine / "llmbuild_engine.json").unlink()
    assert read_engine(engine) == replace(FACTS, tensorrt=None, sm=None, gpu=None)


@pytest.mark.parametrize(
    ("fields", "what", "fix"),
    [
        (
            {"version": "1.1.0"},
            "are of TensorRT-LLM 1.2.1, and 1.1.0 is to run them",
            "serve with nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3; or build again with "
            "engine.version 1.1.0",
        ),
        ({"container": "25.12"}, "are of TensorRT-LLM 1.2.1, and 1.1.0 is to run them", "build again"),
        (
            {"gpu": "l40s"},
            "for sm_90 (built on NVIDIA H100 80GB HBM3), and l40s (sm_89) is to run them",
            "build again with engine.gpu l40s",
        ),
        ({"world_size": 8}, "4 ranks (2 tensor x 2 pipeline), and 8 are to be started", "start 4 ranks"),
    ],
)
def test_refused_with_the_mend(engine: Path, fields: dict[str, str], what: str, fix: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ToolchainError, match="the engines are") as caught:
        require_loads(engine, target(**fields))  # type: ignore[arg-type]
    assert time.perf_counter() - began < 1
    assert what in str(caught.value)
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"version": "1.2.1", "gpu": "h100", "world_size": 4},
        {"container": "26.04", "gpu": "h200"},
        {"container": "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"},
    ],
)
def test_accepted(engine: Path, fields: dict[str, str]) -> None:
    assert require_loads(engine, target(**fields)) == FACTS  # type: ignore[arg-type]


def test_another_tensorrt_of_the_same_tensorrt_llm() -> None:
    (problem,) = loading_problems(FACTS, Target("1.2.1", tensorrt="10.13.3.9"), Path("e"))
    assert problem.what == "the engines are of TensorRT 10.14.1.48, and 10.13.3.9 is to run them"


def test_a_machine_names_its_gpu_in_its_own_words() -> None:
    (problem,) = loading_problems(FACTS, Target(sm=89, gpu="NVIDIA L40S"), Path("e"))
    assert "NVIDIA L40S (sm_89) is to run them" in problem.what
    assert "engine.gpu set to the GPU that is there" in str(problem.fix)


def test_a_container_of_another_version_is_refused(engine: Path) -> None:
    image = "nvcr.io/nvidia/tritonserver:{}-trtllm-python-py3"
    with pytest.raises(ToolchainError, match=r"1\.1\.0 is to run them"):
        require_loads_in(engine, image.format("25.12"))
    require_loads_in(engine, image.format("26.05"))
    require_loads_in(engine, "registry.example.com/ours/triton:7")


def test_every_reason_is_told() -> None:
    problems = loading_problems(FACTS, target(version="1.0.0", gpu="b200", world_size=1), Path("e"))
    assert len(problems) == 3


def test_what_is_not_known_is_not_judged() -> None:
    foreign = replace(FACTS, tensorrt=None, sm=None, gpu=None)
    assert loading_problems(foreign, target(gpu="l40s", version="1.2.1"), Path("e")) == []


def test_targets_that_mean_nothing() -> None:
    with pytest.raises(UsageError, match="two ways to say one thing"):
        target(version="1.2.1", container="26.07")
    with pytest.raises(UsageError, match="a GPU 'h10'"):
        target(gpu="h10")
    with pytest.raises(UsageError, match=r"container '23\.01'"):
        target(container="23.01")


def test_directories_without_engines(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no directory of TensorRT-LLM engines"):
        read_engine(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no directory of TensorRT-LLM engines"):
        read_engine(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert not is_engine_dir(tmp_path)
    with pytest.raises(UsageError, match="no directory of TensorRT-LLM engines"):
        read_engine(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        read_engine(tmp_path)
