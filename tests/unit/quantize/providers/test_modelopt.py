"""nvidia-modelopt as the provider, against our own quantizer on the same model and tokens."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantize.calibration import Calibration
from quantize.driver import quantize_model
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from quantize.methods.registry import make_method
from quantize.providers.modelopt import quantize_with_modelopt, unsupported
from toolchain.errors import QuantizeError, ToolchainError

TOKENS = torch.randint(96, (4, 24), generator=torch.Generator().manual_seed(0))


def calibration() -> Calibration:
    return Calibration("random", TOKENS, 0)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"method": "awq_gptq"}, "method awq_gptq; it has awq, fp8"),
        ({"method": "mixed"}, "method mixed"),
        ({"method": "awq", "symmetric": False}, "asymmetric codes"),
        ({"method": "fp8", "kv_cache": "INT8"}, "a KV cache of INT8"),
        ({"method": "fp8", "format": "compressed-tensors"}, "the file form compressed-tensors"),
        ({"method": "fp8", "overrides": [{"modules": "*", "method": "awq"}]}, "overrides"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_loaded(
    config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(QuantizeError, match=f"not available there: {named}"):
        quantize_with_modelopt(tmp_path, tmp_path / "o", tmp_path / "w", config=config, calibration=None)
    assert not unsupported({"method": "fp8", "kv_cache": "FP8", "format": "auto"})
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("modelopt"):
            raise ImportError("No module named 'modelopt'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ToolchainError, match=r"pip install 'llmbuild\[modelopt\]', or use provider: native"):
        quantize_with_modelopt(
            tmp_path, tmp_path / "o", tmp_path / "w", config={"method": "fp8"}, calibration=calibration()
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kv_cache"), [("fp8", "FP8"), ("awq", None), ("int8_sq", None), ("int8_wo", None)]
)
def test_both_providers_give_comparable_checkpoints(
    method: str, kv_cache: str | None, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("modelopt.torch", reason="nvidia-modelopt cannot be imported", exc_type=ImportError)
    source, excluded = save_model("Qwen2"), "model.layers.0.mlp.down_proj"
    config: dict[str, Any] = {
        "method": method,
        "group_size": 32,
        "exclude": ["lm_head", excluded],
        "kv_cache": kv_cache,
    }
    wanted = make_method(method, group_size=32)
    assert wanted is not None
    seen = calibration() if wanted.needs_calibration else None
    report = quantize_with_modelopt(
        source, tmp_path / "theirs", tmp_path / "work-theirs", config=config, calibration=seen
    )
    quantize_model(
        source,
        tmp_path / "ours",
        tmp_path / "work-ours",
        method=wanted,
        calibration=seen,
        exclude=config["exclude"],
        kv_cache=kv_cache,
    )
    theirs, ours = (QuantizedCheckpoint.open(tmp_path / name) for name in ("theirs", "ours"))
    described = [
        {name: (each.checkpoint.dtype(name), each.checkpoint.shape(name)) for name in each.checkpoint.names}
        for each in (theirs, ours)
    ]
    assert described[0] == described[1]
    assert theirs.scheme.linears == ours.scheme.linears
    assert excluded not in theirs.scheme.linears
    assert theirs.kv_cache_quant_algo == kv_cache
    written = json.loads((tmp_path / "theirs/config.json").read_text())
    assert written.pop("quantization_config")["quant_method"] == "modelopt"
    assert written == json.loads((source / "config.json").read_text())
    assert (tmp_path / "theirs/tokenizer.json").exists()
    assert json.loads((tmp_path / "theirs/quantization_report.json").read_text())["provider"].startswith(
        "nvidia-modelopt "
    )
    assert report["calibration_tokens"] == (TOKENS.numel() if seen else 0)
    assert not list((tmp_path / "work-theirs").iterdir())
    if method == "awq":
        return  # scales lie in the norms: their weights are not comparable one by one
    original = QuantizedCheckpoint.open(source)
    for module in ours.scheme.linears:
        errors = []
        for checkpoint in (theirs, ours):
            linear, weight = checkpoint.linear(module), original.linear(module)
            assert isinstance(linear, QuantizedLinear)
            assert isinstance(weight, torch.Tensor)
            errors.append(float((linear.dequantize() - weight.float()).norm()))
        assert 0.5 < errors[0] / errors[1] < 2
