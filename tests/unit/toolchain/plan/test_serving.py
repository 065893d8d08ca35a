"""Which version takes what `deploy` says."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.data import load_table
from toolchain.plan.serving import serving_problems
from toolchain.recipe import Recipe
from toolchain.recipe.triton import TensorRTLLM


def problems(version: str | None, flavour: str = "tensorrt", **deploy: Any) -> list[str]:
    recipe = {
        "schema": 1, "name": "r", "model": {"source": "o/n"}, "deploy": deploy,
        "engine": {"flavour": flavour, "version": version},
    }  # fmt: skip
    return [str(problem) for problem in serving_problems(Recipe.model_validate(recipe))]


def test_the_table_names_parameters() -> None:
    assert set(load_table("triton_parameters")) <= set(TensorRTLLM.model_fields)


@pytest.mark.parametrize("version", ["0.19.0", "1.2.1", None])
def test_versions_that_know_a_parameter(version: str | None) -> None:
    assert problems(version, tensorrt_llm={"num_nodes": 2}) == []


def test_one_that_does_not() -> None:
    assert problems("0.18.2") == []
    (problem,) = problems("0.18.2", tensorrt_llm={"num_nodes": 2, "cuda_graph_mode": True})
    assert problem.startswith("deploy.tensorrt_llm.num_nodes: Triton's backend of TensorRT-LLM 0.18.2 has no")
    assert "set engine.version to 0.19.0 or newer" in problem
