from dataclasses import replace

import pytest
import torch

from quantize.algorithms.smoothquant import search_alpha, smooth_linear, smoothing
from quantize.linear import QuantizedLinear
from quantize.methods.base import Group, QuantizedGroup
from quantize.methods.smoothquant import SmoothQuant
from quantize.methods.statistics import CPU


def inputs(seed: int, outliers: float = 40) -> torch.Tensor:
    """[600, 64], three channels `outliers` times the others."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(600, 64, generator=random)
    x[:, torch.randperm(64, generator=random)[:3]] *= outliers
    return x


def make_group(seed: int, dtype: torch.dtype) -> Group:
    random = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(16, 64, generator=random).to(dtype) for name in ("q", "k")}
    return Group(weights, {"q": torch.ones(16, dtype=dtype)}, torch.ones(64, dtype=dtype), False)


def quantized(group: Group, x: torch.Tensor, alpha: float | None = None) -> QuantizedGroup:
    method = SmoothQuant(alpha)
    statistics = method.observe(64, 0, CPU)
    statistics.update(x)
    return method.quantize(group, statistics)


def computed(linear: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    """What the integer kernel computes of x [tokens, 64], in float64, without the bias."""
    assert linear.pre_quant_scale is not None
    assert linear.input_scale is not None
    scaled = x.double() * linear.pre_quant_scale.double()
    codes = (scaled / linear.input_scale.double()).round().clamp(-128, 127)
    sums = codes @ linear.codes.double().t()
    return sums * linear.input_scale.double() * linear.scales.double().t()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_smoothing_beats_rounding_and_reports_the_error_that_a_kernel_makes(dtype: torch.dtype) -> None:
    x = inputs(1)[:500].to(dtype)  # fewer than the sample holds
    group = make_group(2, dtype)
    answer = quantized(group, x)
    plain = [smooth_linear(w, smoothing([w], x.abs().amax(0).float(), None)) for w in group.weights.values()]
    for (name, weight), unsmoothed in zip(group.weights.items(), plain, strict=True):
        linear, exact = answer.linears[name], x.double() @ weight.double().t()
        error = (computed(linear, x) - exact).norm() / exact.norm()
        assert answer.report[name]["relative_error"] == pytest.approx(float(error), rel=1e-3)
        assert error < 0.5 * (computed(unsmoothed, x) - exact).norm() / exact.norm()
        # Each channel's factor times what x is multiplied by is 1 but for the rounding of the sums.
        torch.testing.assert_close(linear.dequantize(), weight.float(), rtol=0, atol=0.1)
    assert torch.equal(answer.linears["q"].bias, group.biases["q"])  # type: ignore[arg-type]
    assert answer.norm is None
    assert torch.equal(answer.linears["q"].pre_quant_scale, answer.linears["k"].pre_quant_scale)  # type: ignore[arg-type]
    assert answer.linears["q"].pre_quant_scale.dtype == dtype  # type: ignore[union-attr]


def test_alpha_one_flattens_the_input_and_zero_the_weights() -> None:
    x, group = inputs(3), make_group(4, torch.float32)
    amax, weights = x.abs().amax(dim=0), list(group.weights.values())
    flat = amax * smoothing(weights, amax, 1.0).pre_quant_scale
    assert float(flat.max() / flat.min()) == pytest.approx(1, rel=1e-5)
    columns = torch.stack([(w * smoothing(weights, amax, 0.0).scale).abs().amax(0) for w in weights]).amax(0)
    assert float(columns.max() / columns.min()) == pytest.approx(1, rel=1e-5)


def test_a_given_alpha_is_taken_and_the_searched_one_is_no_worse() -> None:
    x, group = inputs(5), make_group(6, torch.bfloat16)
    found = quantized(group, x[:500])
    total: dict[float | None, float] = {None: sum_of_errors(found, group, x[:500])}
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        answer = quantized(group, x[:500], alpha)
        assert answer.report["q"]["alpha"] == alpha
        total[alpha] = sum_of_errors(answer, group, x[:500])
    assert min(total.values()) >= 0.97 * total[None]  # the coarse steps may hide a finer best
    assert 0 < found.report["q"]["alpha"] < 1


def sum_of_errors(answer: QuantizedGroup, group: Group, x: torch.Tensor) -> float:
    return sum(
        float((computed(answer.linears[name], x) - x.double() @ weight.double().t()).square().sum())
        for name, weight in group.weights.items()
    )


def test_where_not_smoothing_is_best_nothing_is_smoothed() -> None:
    """One input pattern: every channel at its largest in every token, so that nothing is gained."""
    x = torch.ones(50, 32) * 127
    weights = [torch.eye(32) * 127]
    assert search_alpha(weights, x.abs().amax(0), x) is None
    assert smoothing(weights, x.abs().amax(0), None).pre_quant_scale.tolist() == [1] * 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("alpha", [None, 0.0, 1.0])
def test_zeros_in_inputs_and_weights_are_harmless(dtype: torch.dtype, alpha: float | None) -> None:
    x, group = inputs(7).to(dtype), make_group(8, dtype)
    x[:, 10] = 0
    group.weights["q"][:] = 0
    group.weights["k"][:, 20] = 0
    group.weights["k"][3] = 0
    answer = quantized(group, x, alpha)
    for linear in answer.linears.values():
        assert bool((linear.scales > 0).all())
        assert linear.pre_quant_scale is not None
        assert bool(linear.pre_quant_scale.isfinite().all())
        assert bool((linear.pre_quant_scale > 0).all())
        assert linear.codes.min() >= -127
    assert not answer.linears["q"].codes.any()
    assert answer.report["q"]["relative_error"] == 0
    assert answer.report["k"]["relative_error"] < 0.1
    silent = quantized(group, torch.zeros(8, 64, dtype=dtype), alpha)
    assert float(silent.linears["k"].input_scale) == 1  # type: ignore[arg-type]
    assert bool(silent.linears["k"].scales.isfinite().all())


def test_experts_are_not_smoothed() -> None:
    """Engines read one pre_quant_scale for all experts of a layer."""
    group = replace(make_group(11, torch.bfloat16), shared_scale=True)
    for alpha in (None, 0.5):
        linear = quantized(group, inputs(11), alpha).linears["q"]
        assert torch.equal(linear.pre_quant_scale, torch.ones(64).bfloat16())  # type: ignore[arg-type]


def test_one_row_and_one_channel() -> None:
    method = SmoothQuant()
    for rows, columns in ((1, 8), (4, 1), (1, 1)):
        statistics = method.observe(columns, 0, CPU)
        statistics.update(torch.randn(30, columns))
        weight = torch.randn(rows, columns)
        answer = method.quantize(Group({"a": weight}, {}, None, True), statistics)
        assert answer.report["a"]["relative_error"] < 0.02


def test_huge_inputs_keep_the_factor_in_range_of_float16() -> None:
    x = inputs(9, outliers=1).half()
    x[:, 0] *= 10_000
    answer = quantized(make_group(10, torch.float16), x, 1.0)
    factor = answer.linears["q"].pre_quant_scale
    assert float(factor[0]) < 0.05 * float(factor[1:].median())  # type: ignore[index]
    assert answer.report["q"]["relative_error"] < 0.05
