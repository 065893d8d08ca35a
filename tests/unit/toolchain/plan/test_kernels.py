"""The table of who runs what, and what it says of recipes."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from toolchain.data import load_table
from toolchain.errors import UsageError
from toolchain.plan.kernels import FLAVOURS, kernel_problems, support, version_problems
from toolchain.recipe.engine import Flavour
from toolchain.recipe.quantization import Method, Quantization


def problems(flavour: str, gpu: str | None, **fields: Any) -> list[str]:
    return [found.what for found in kernel_problems(Quantization.model_validate(fields), flavour, gpu)]


def test_the_tables_know_every_method_flavour_and_generation() -> None:
    methods = set(get_args(Method))
    assert set(load_table("formats")) == methods
    assert set(load_table("quant_algos")) == methods | {"kv_fp8", "kv_int8"}
    assert set(FLAVOURS) == set(get_args(Flavour))
    generations = {facts["sm"] for facts in load_table("gpus").values()} | {120}
    for row in load_table("quant_algos").values():
        assert set(row) <= {"groups", "note", *FLAVOURS}
        for flavour in set(FLAVOURS) & set(row):
            assert row[flavour] is True if flavour == "openvino" else set(row[flavour]) <= generations


# (method, flavour, oldest that runs it, one that does not)
@pytest.mark.parametrize(
    ("method", "flavour", "able", "unable"),
    [
        ("fp8", "tensorrt", "l4", "a100-80g"),
        ("fp8_rowwise", "pytorch", "h100", "l4"),
        ("w4a8_awq", "tensorrt", "l40s", "b200"),
        ("nvfp4", "pytorch", "b200", "h100"),
        ("int8_sq", "tensorrt", "a10g", "b200"),
        ("awq", "vllm", "a10g", None),
    ],
)
def test_the_generation_decides(method: str, flavour: str, able: str, unable: str | None) -> None:
    assert problems(flavour, able, method=method) == []
    assert problems(flavour, None, method=method) == []
    if unable is not None:
        (what,) = problems(flavour, unable, method=method)
        assert f"{method} has no kernel on {unable}" in what


@pytest.mark.parametrize(
    ("flavour", "fields"),
    [
        ("pytorch", {"method": "int8_sq"}),
        ("pytorch", {"kv_cache": "int8"}),
        ("vllm", {"method": "w4a8_awq"}),
        ("vllm", {"method": "none", "overrides": [{"modules": "*", "method": "w4a8_awq"}]}),
        ("pytorch", {"method": "mixed", "search": {"candidates": ["none", "int8_sq"], "max_bits": 9.0}}),
    ],
)
def test_what_only_another_flavour_runs(flavour: str, fields: dict[str, Any]) -> None:
    (what,) = problems(flavour, None, **fields)
    assert what.endswith(f"does not run on the {flavour} flavour")
    assert problems("tensorrt", None, **fields) == []


def test_w4a8_has_one_group_size() -> None:
    assert problems("tensorrt", "h100", method="w4a8_awq", group_size=64) == [
        "w4a8_awq has no kernel for groups of 64"
    ]


@pytest.mark.parametrize(
    ("flavour", "version", "works"),
    [
        ("tensorrt", "0.16.0", False),
        ("tensorrt", "0.17.0.post1", True),
        ("tensorrt", "1.2.1", True),
        ("tensorrt", "1.3.0rc15", True),
        ("tensorrt", "1.3.0rc22", False),
        ("tensorrt", "1.4.0rc0", False),
        ("pytorch", "0.21.0", False),
        ("pytorch", "1.4.0rc0", True),
        ("vllm", "0.1", True),
        ("tensorrt", None, True),
    ],
)
def test_versions(flavour: str, version: str | None, works: bool) -> None:
    assert (version_problems(flavour, version) == []) is works


def test_the_table_of_one_gpu_or_flavour() -> None:
    everything = {row.method: row for row in support()}
    assert everything["none"].gpus["openvino"] == ()
    assert everything["nvfp4"].gpus["tensorrt"] == ("b200",)
    ampere = {row.method: row for row in support("a100-80g")}
    assert "fp8" not in ampere
    assert ampere["int8_sq"].gpus == {"tensorrt": ("a100-80g",), "vllm": ("a100-80g",)}
    assert {name for row in support(flavour="vllm") for name in row.gpus} == {"vllm"}
    with pytest.raises(UsageError, match="nothing is known of a GPU 'h10'"):
        support("h10")
    with pytest.raises(UsageError, match="nothing is known of a flavour 'x'"):
        support(flavour="x")
