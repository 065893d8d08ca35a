"""What of a recipe is in the key of its quantization: all that decides the bytes, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.errors import ToolchainError
from toolchain.pipeline.quantization import device_type, quantize_config
from toolchain.recipe.quantization import Quantization

CALIBRATION = {"dataset": "file:/calib.txt"}


def config(flavour: str = "openvino", **fields: Any) -> dict[str, Any]:
    quant = Quantization.model_validate({"calibration": CALIBRATION, "device": "cpu"} | fields)
    return quantize_config(quant, flavour)


def test_what_is_not_read_is_left_out() -> None:
    assert config(method="none", group_size=64, hidden_states_memory="1GiB") == {
        "method": "none",
        "format": "auto",
    }
    assert "group_size" not in config(method="fp8")
    assert "damp" in config(method="gptq")
    assert "damp" not in config(method="awq")
    assert "damp" in config(method="awq", overrides=[{"modules": "*", "method": "gptq"}])


def test_where_the_states_lie_is_no_part_of_it() -> None:
    assert config(method="awq", hidden_states_memory="1MB") == config(method="awq")


def test_auto_and_the_form_that_it_comes_to_are_the_same() -> None:
    assert config(method="awq", format="modelopt") == config(method="awq")
    assert config(method="awq", symmetric=False)["format"] == "compressed-tensors"


def test_vllm_gets_integer_weights_in_a_form_that_it_reads() -> None:
    assert config("vllm", method="fp8")["format"] == "modelopt"
    assert config("vllm", method="gptq")["format"] == "compressed-tensors"
    overridden = [{"modules": "*.o_proj", "method": "awq"}]
    assert config("vllm", method="fp8", overrides=overridden)["format"] == "compressed-tensors"


def test_an_fp8_cache_has_measured_scales_where_there_is_text() -> None:
    measured = config("tensorrt", method="none", kv_cache="fp8")
    assert measured == {"method": "none", "format": "modelopt", "kv_cache": "FP8", "device": "cpu"}
    assert "kv_cache" not in config("tensorrt", method="none", kv_cache="fp8", calibration=None)


def test_vllm_gets_a_published_checkpoint_as_it_is() -> None:
    assert config("vllm", method="none")["format"] == "own"
    assert config("pytorch", method="none")["format"] == "modelopt"


def test_the_budget_of_a_search_is_in_bytes() -> None:
    search = {"candidates": ["awq", "none"], "max_size": "1.5MB"}
    assert config(method="mixed", search=search)["search"] == {
        "candidates": ["awq", "none"],
        "max_bits": None,
        "max_bytes": 1_500_000,
        "max_kl": None,
    }


def test_an_absent_gpu_is_told_before_any_work() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert device_type("auto") == "cpu"
    with pytest.raises(ToolchainError, match="no CUDA device"):
        device_type("cuda")


def test_the_provider_counts_where_something_is_quantized() -> None:
    assert config(method="fp8", provider="modelopt") == config(method="fp8") | {"provider": "modelopt"}
    assert config(method="none", provider="modelopt") == config(method="none")
