"""What a launch takes from a tensorrt recipe; `tests/flow/test_launch.py` has artifacts that were built."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.pipeline.launch import recipe_facts
from toolchain.recipe import Recipe


def facts(version: str | None = None, **sections: Any) -> dict[str, Any]:
    engine = {"flavour": "tensorrt", "version": version}
    recipe = {"schema": 1, "name": "r", "model": {"source": "o/n"}, "engine": engine, **sections}
    return recipe_facts(Recipe.model_validate(recipe))


def test_defaults() -> None:
    assert facts("1.2.1") == {
        "flavour": "tensorrt",
        "image": "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
        "ranks": 1,
        "paths": (),
    }


@pytest.mark.parametrize(
    ("version", "tag"), [("0.17.0", "25.01"), ("1.0.0", "25.10"), ("1.1.0", "26.02"), (None, "26.07")]
)
def test_the_container_is_that_of_the_version(version: str | None, tag: str) -> None:
    assert facts(version)["image"] == f"nvcr.io/nvidia/tritonserver:{tag}-trtllm-python-py3"


def test_a_version_without_a_container() -> None:
    assert facts("1.3.0rc2")["image"] is None


def test_processes_models_and_paths() -> None:
    section = {
        "mode": "orchestrator",
        "spawn_processes": False,
        "participant_ids": [1, 2],
        "gpu_device_ids": [[0, 1]],
        "gpt_model_path": "/engines/target",
        "lora_prefetch_dir": "adapters",
        "draft": {"gpt_model_path": "/engines/draft"},
    }
    found = facts("1.2.1", parallelism={"tensor": 2}, deploy={"tensorrt_llm": section})
    assert found["ranks"] == 2
    assert (found["instances"], found["orchestrator"], found["participants"]) == (1, True, 2)
    assert found["engine_models"] == ("tensorrt_llm", "tensorrt_llm_draft")
    assert found["paths"] == ("/engines/target", "/engines/draft")  # relative ones lie in the repository
