import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.algorithms.awq import absorb, search_scale
from quantize.algorithms.integer import GridSpec
from quantize.methods.awq import Awq
from quantize.methods.base import Group
from quantize.methods.statistics import CPU, InputStatistics

GROUP = 32


def inputs(seed: int, outliers: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(600, 64, generator=random)
    x[:, torch.randperm(64, generator=random)[:outliers]] *= 25
    return x


def observed(x: torch.Tensor) -> InputStatistics:
    statistics = Awq(GROUP).observe(64, seed=0, device=CPU)
    statistics.update(x)
    return statistics


def make_group(seed: int, dtype: torch.dtype, *, norm: bool, pre_quant_scale: bool) -> Group:
    random = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(16, 64, generator=random).to(dtype) for name in ("q", "k")}
    gain = (torch.rand(64, generator=random) + 0.5).to(dtype) if norm else None
    return Group(weights, {"q": torch.ones(16, dtype=dtype)}, gain, pre_quant_scale)


def output_error(group: Group, answer: object, x: torch.Tensor) -> float:
    """The squared output error on x itself, the inputs behind the norm."""
    total = 0.0
    for name, weight in group.weights.items():
        effective = answer.linears[name].dequantize()  # type: ignore[attr-defined]
        if group.norm is not None and answer.norm is not None:  # type: ignore[attr-defined]
            effective = effective * (answer.norm.float() / group.norm.float())  # type: ignore[attr-defined]
        total += float(((effective - weight.float()) @ x.t()).square().sum())
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("norm", "pre_quant_scale"), [(True, False), (False, True), (False, False)])
def test_every_place_for_the_scale_beats_rounding(
    dtype: torch.dtype, norm: bool, pre_quant_scale: bool
) -> None:
    x = inputs(1)
    group = make_group(2, dtype, norm=norm, pre_quant_scale=pre_quant_scale)
    answer = Awq(GROUP).quantize(group, observed(x))
    assert (answer.norm is not None) == norm
    for name, linear in answer.linears.items():
        assert (linear.pre_quant_scale is not None) == pre_quant_scale
        assert linear.group_size == GROUP
        facts = answer.report[name]
        assert facts["relative_error"] <= facts["relative_error_of_rounding"]
    assert torch.equal(answer.linears["q"].bias, group.biases["q"])  # type: ignore[arg-type]
    assert answer.linears["k"].bias is None
    plain = Awq(GROUP, clip=False).quantize(Group(group.weights, {}, None, False), observed(x))
    bound = 0.6 if norm or pre_quant_scale else 1.0
    assert output_error(group, answer, x) < bound * output_error(group, plain, x)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_the_reported_error_is_the_error(seed: int) -> None:
    x = inputs(seed)
    group = make_group(seed, torch.float32, norm=False, pre_quant_scale=True)
    statistics = observed(x)
    answer = Awq(GROUP).quantize(group, statistics)
    for name, weight in group.weights.items():
        change = answer.linears[name].dequantize() - weight
        expected = (change @ statistics.sketch.t()).norm() / (weight @ statistics.sketch.t()).norm()
        assert answer.report[name]["relative_error"] == pytest.approx(float(expected), rel=1e-3)


def test_folding_is_exact_in_exact_arithmetic() -> None:
    """Norm and weights after folding, the weights unquantized, give what they gave before."""
    x = inputs(5).double()
    normed = x / x.square().mean(dim=1, keepdim=True).sqrt()
    group = make_group(6, torch.bfloat16, norm=True, pre_quant_scale=False)
    assert group.norm is not None
    search = search_scale(
        list(group.weights.values()),
        observed((normed * group.norm).float()).magnitude,
        observed((normed * group.norm).float()).sketch,
        GridSpec(GROUP, torch.bfloat16),
    )
    folded, scale = absorb(group.norm, search.scale)
    assert not torch.equal(folded, group.norm)
    for weight in group.weights.values():
        before = (normed * group.norm.double()) @ weight.double().t()
        after = (normed * folded.double()) @ (weight.double() * scale.double()).t()
        torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6 * float(before.abs().max()))


def test_zero_weights_and_silent_inputs_are_harmless() -> None:
    x = inputs(7)
    x[:, 10] = 0
    group = make_group(8, torch.bfloat16, norm=True, pre_quant_scale=False)
    group.weights["q"][:] = 0
    answer = Awq(GROUP).quantize(group, observed(x))
    assert bool((answer.linears["q"].scales == 1).all())
    assert not answer.linears["q"].codes.any()
    assert answer.report["q"]["relative_error"] == 0
    silent = Awq(GROUP).quantize(group, observed(torch.zeros(8, 64)))
    assert bool(silent.linears["k"].scales.isfinite().all())
