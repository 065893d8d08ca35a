"""What a machine lacks, and that it is said before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolchain.engine import flavour
from toolchain.recipe import Recipe

from .conftest import H100


def missing(gpu: str | None = "h100", version: str | None = "1.2.1", **build: Any) -> list[str]:
    engine = {"flavour": "tensorrt", "gpu": gpu, "version": version, "build": build}
    recipe = Recipe.model_validate({"schema": 1, "name": "r", "model": {"source": "o/n"}, "engine": engine})
    found = flavour("tensorrt").missing(recipe)
    assert all(error.fix and error.where for error in found)
    return [error.what for error in found]


@pytest.mark.parametrize("executor", ["local", "docker", "podman"])
def test_a_machine_with_everything(stand_ins: Path, executor: str) -> None:
    assert missing(executor=executor) == []
    assert missing(gpu=None, executor=executor) == []


def test_a_machine_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    lacks = "engines cannot be built here: {}, there is no NVIDIA GPU"
    assert missing() == [lacks.format("there is no trtllm-build on PATH")]
    assert missing(executor="docker") == [lacks.format("docker cannot be used here")]


def test_a_gpu_without_its_tool(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stand_ins.parent / "bin" / "trtllm-build").unlink()
    assert missing() == ["there is no trtllm-build on PATH"]


@pytest.mark.parametrize("executor", ["slurm", "kubernetes"])
def test_a_cluster_needs_nothing_here_but_the_gpus_name(
    monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert missing(executor=executor) == []
    assert missing(gpu=None, executor=executor) == [f"executor {executor} needs engine.gpu"]


def test_a_daemon_that_does_not_answer(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "no daemon")
    assert missing(executor="docker") == ["docker cannot be used here"]


def test_a_version_without_a_container(stand_ins: Path) -> None:
    assert missing(version="0.18.1", executor="docker") == ["no container with TensorRT-LLM 0.18.1 is known"]
    assert missing(version="0.18.1", executor="docker", image="mine:1") == []
    assert missing(version="0.18.1") == []


def test_another_gpu_than_the_recipe_names(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_GPUS", "NVIDIA L40S, 8.9\n")
    assert missing() == ["engine.gpu is h100 (sm_90), and here are others"]
    assert missing(gpu="l40s") == []


def test_gpus_of_several_architectures(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_GPUS", H100 + "NVIDIA T1000, 7.5\n")
    assert missing(gpu=None) == ["the GPUs of this machine are of several architectures"]
    assert missing() == ["engine.gpu is h100 (sm_90), and here are others"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert missing() == []


def test_the_architecture_is_part_of_the_key(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def arch(gpu: str | None) -> str | None:
        engine = {"flavour": "tensorrt", "gpu": gpu}
        recipe = Recipe.model_validate(
            {"schema": 1, "name": "r", "model": {"source": "o/n"}, "engine": engine}
        )
        return flavour("tensorrt").inputs(recipe).arch

    assert [arch(gpu) for gpu in ("h100", "h200", "l40s", None)] == ["sm_90", "sm_90", "sm_89", "sm_90"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert arch(None) is None
