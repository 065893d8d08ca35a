from typing import Any

import pytest
import torch

from quantize.methods.awq import Awq
from quantize.methods.base import Group, QuantizedGroup
from quantize.methods.gptq import AwqGptq, Gptq
from quantize.methods.statistics import CPU, GramStatistics

GROUP = 32


def inputs(seed: int) -> torch.Tensor:
    """[600, 64], correlated, three channels 25 times the others."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(600, 64, generator=random)
    x = x + torch.randn(600, 6, generator=random) @ torch.randn(6, 64, generator=random)
    x[:, torch.randperm(64, generator=random)[:3]] *= 25
    return x


def observed(x: torch.Tensor) -> GramStatistics:
    statistics = Gptq(GROUP).observe(64, seed=0, device=CPU)
    statistics.update(x)
    return statistics


def make_group(seed: int, dtype: torch.dtype, *, norm: bool, pre_quant_scale: bool) -> Group:
    random = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(16, 64, generator=random).to(dtype) for name in ("q", "k")}
    gain = (torch.rand(64, generator=random) + 0.5).to(dtype) if norm else None
    return Group(weights, {"q": torch.ones(16, dtype=dtype)}, gain, pre_quant_scale)


def output_error(group: Group, answer: QuantizedGroup, x: torch.Tensor) -> float:
    """The squared output error on x itself, the inputs behind the norm."""
    total = 0.0
    for name, weight in group.weights.items():
        effective = answer.linears[name].dequantize()
        if group.norm is not None and answer.norm is not None:
            effective = effective * (answer.norm.float() / group.norm.float())
        total += float(((effective - weight.float()) @ x.t()).square().sum())
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("norm", "pre_quant_scale"), [(True, False), (False, True), (False, False)])
def test_both_together_beat_each_alone(dtype: torch.dtype, norm: bool, pre_quant_scale: bool) -> None:
    x = inputs(1)
    group = make_group(2, dtype, norm=norm, pre_quant_scale=pre_quant_scale)
    statistics = observed(x)
    awq = Awq(GROUP).quantize(group, statistics.inputs)
    gptq = Gptq(GROUP).quantize(group, statistics)
    both = AwqGptq(Gptq(GROUP)).quantize(group, statistics)
    assert gptq.norm is None
    assert (both.norm is not None) == norm
    for answer in (gptq, both):
        for name, linear in answer.linears.items():
            assert (linear.pre_quant_scale is not None) == pre_quant_scale
            assert linear.group_size == GROUP
            assert answer.report[name]["relative_error"] < answer.report[name]["relative_error_of_rounding"]
        assert torch.equal(answer.linears["q"].bias, group.biases["q"])  # type: ignore[arg-type]
    assert output_error(group, both, x) < output_error(group, awq, x)
    if norm or pre_quant_scale:
        assert output_error(group, both, x) < output_error(group, gptq, x)
    else:
        assert output_error(group, both, x) == output_error(group, gptq, x)


def test_gptq_alone_stores_a_scale_of_ones() -> None:
    group = make_group(3, torch.bfloat16, norm=False, pre_quant_scale=True)
    answer = Gptq(GROUP).quantize(group, observed(inputs(3)))
    for linear in answer.linears.values():
        assert torch.equal(linear.pre_quant_scale, torch.ones(64, dtype=torch.bfloat16))  # type: ignore[arg-type]


def test_the_reported_error_is_the_error() -> None:
    group = make_group(4, torch.float32, norm=False, pre_quant_scale=True)
    statistics = observed(inputs(4))
    sketch = statistics.inputs.sketch.t()
    for method in (Gptq(GROUP), AwqGptq(Gptq(GROUP))):
        answer = method.quantize(group, statistics)
        for name, weight in group.weights.items():
            expected = ((answer.linears[name].dequantize() - weight) @ sketch).norm() / (
                weight @ sketch
            ).norm()
            assert answer.report[name]["relative_error"] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("method", [Gptq(GROUP), AwqGptq(Gptq(GROUP))])
def test_zero_weights_and_silent_inputs_are_harmless(method: Any) -> None:
    x = inputs(7)
    x[:, 10] = 0
    group = make_group(8, torch.bfloat16, norm=True, pre_quant_scale=False)
    group.weights["q"][:] = 0
    answer = method.quantize(group, observed(x))
    assert bool((answer.linears["q"].scales == 1).all())
    assert not answer.linears["q"].codes.any()
    assert answer.report["q"]["relative_error"] == 0
    silent = method.quantize(group, observed(torch.zeros(8, 64)))
    assert bool(silent.linears["k"].scales.isfinite().all())


def test_parameters_tell_the_methods_apart() -> None:
    assert Gptq(64).parameters() == {
        "method": "gptq",
        "group_size": 64,
        "clip": True,
        "act_order": True,
        "damp": 0.01,
        "symmetric": True,
    }
    assert AwqGptq(Gptq(64)).parameters() == Gptq(64).parameters() | {"method": "awq_gptq"}
    assert AwqGptq(Gptq(64)).scheme.group_size == 64
    assert AwqGptq().scheme == Gptq().scheme == Awq().scheme
