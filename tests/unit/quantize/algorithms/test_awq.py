import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.algorithms.awq import absorb, candidate_errors, quantize_scaled, search_clip, search_scale
from quantize.algorithms.integer import GridSpec, quantize_groups
from quantize.linear import QuantizedLinear
from quantize.methods.statistics import InputStatistics

GROUP = 32
BF16 = GridSpec(GROUP, torch.bfloat16)
F32 = GridSpec(GROUP, torch.float32)


def problem(seed: int, outliers: int, rows: int = 24) -> tuple[torch.Tensor, InputStatistics]:
    """A weight [rows, 64], and statistics of inputs some of whose channels are 30 times the others."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(600, 64, generator=random)
    x[:, torch.randperm(64, generator=random)[:outliers]] *= 30
    statistics = InputStatistics(64, GROUP, seed)
    statistics.update(x)
    return torch.randn(rows, 64, generator=random), statistics


def error(
    codes: torch.Tensor, scales: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    return codes * scales.repeat_interleave(GROUP, dim=1) / scale - weight


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 8))
def test_the_scale_is_never_worse_than_none_on_the_objective(seed: int, outliers: int) -> None:
    weight, statistics = problem(seed, outliers)
    search = search_scale([weight], statistics.magnitude, statistics.sketch, BF16)
    candidates = [torch.ones(64), search.scale]
    plain, scaled = candidate_errors([weight], candidates, statistics.sketch, BF16)
    assert scaled <= plain
    assert 0 <= search.alpha <= 1


def test_outlier_channels_are_protected() -> None:
    weight, statistics = problem(7, outliers=4)
    search = search_scale([weight], statistics.magnitude, statistics.sketch, BF16)
    candidates = [torch.ones(64), search.scale]
    plain, scaled = candidate_errors([weight], candidates, statistics.sketch, BF16)
    assert scaled < 0.5 * plain
    assert search.scale[statistics.magnitude > 10].min() > 2 * search.scale[statistics.magnitude < 10].mean()


def test_the_objective_is_the_output_error_of_the_quantized_weight() -> None:
    weight, statistics = problem(8, outliers=2)
    scale = torch.linspace(0.5, 2, 64)
    codes, scales = quantize_groups(weight * scale, GROUP, torch.float32)
    direct = (error(codes, scales, scale, weight) @ statistics.sketch.t()).square().sum()
    found = candidate_errors([weight], [scale], statistics.sketch, F32)[0]
    assert found == pytest.approx(float(direct), rel=1e-4)


def test_linears_with_one_input_are_judged_together() -> None:
    (first, statistics), (second, _) = problem(9, 3), problem(10, 3)
    scale = torch.linspace(0.5, 2, 64)
    parts = [candidate_errors([w], [scale], statistics.sketch, F32)[0] for w in (first, second)]
    whole = candidate_errors([first, second], [scale], statistics.sketch, F32)[0]
    assert whole == pytest.approx(sum(parts))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 8))
def test_clipping_never_raises_a_groups_error(seed: int, outliers: int) -> None:
    weight, statistics = problem(seed, outliers)
    ratios = search_clip(weight, statistics.blocks, F32)
    assert bool(((ratios > 0.5) & (ratios <= 1)).all())
    losses = []
    for choice in (None, ratios):
        codes, scales = quantize_groups(weight, GROUP, torch.float32, ratios=choice)
        change = error(codes, scales, torch.ones(64), weight).view(-1, 2, GROUP)
        losses.append(torch.einsum("ogi,gij,ogj->og", change, statistics.blocks, change))
    assert bool((losses[1] <= losses[0] * (1 + 1e-4)).all())


def test_the_clip_search_sees_the_scaled_inputs() -> None:
    weight, statistics = problem(11, outliers=3)
    scale = torch.linspace(0.25, 4, 64)
    scaled = InputStatistics(64, GROUP, 0)
    blocks = statistics.blocks / (scale.view(2, 1, GROUP) * scale.view(2, GROUP, 1))
    scaled.blocks.copy_(blocks)
    expected = search_clip(weight * scale, scaled.blocks, F32)
    _, _, ratios = quantize_scaled(weight, scale, statistics.blocks, F32)
    assert ratios is not None
    assert torch.equal(ratios, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_absorbing_a_scale_leaves_the_product_as_it_was(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(4)
    vector = torch.randn(256, generator=random).to(dtype)
    scale = torch.rand(256, generator=random) * 10 + 0.05
    folded, effective = absorb(vector, scale)
    assert folded.dtype == dtype
    torch.testing.assert_close(folded.double() * effective.double(), vector.double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(effective, scale, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_a_channel_that_cannot_take_a_scale_keeps_its_own() -> None:
    vector = torch.tensor([0.0, 6e4, 1e-4, 1.0], dtype=torch.float16)
    folded, effective = absorb(vector, torch.tensor([2.0, 0.01, 1e4, 2.0]))
    assert torch.equal(folded, torch.tensor([0.0, 6e4, 1e-4, 0.5], dtype=torch.float16))
    assert effective.tolist() == [1.0, 1.0, 1.0, 2.0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4), st.booleans())
def test_zero_points_serve_weights_that_lean_to_one_side(seed: int, outliers: int, scaled: bool) -> None:
    weight, statistics = problem(seed, outliers)
    weight = weight.abs() + 0.1
    scale = torch.linspace(0.5, 2, 64) if scaled else torch.ones(64)
    losses = []
    for symmetric in (True, False):
        spec = GridSpec(GROUP, torch.float32, symmetric=symmetric)
        codes, grid, ratios = quantize_scaled(weight, scale, statistics.blocks, spec)
        assert ratios is not None
        linear = QuantizedLinear(
            codes, grid.scales, bits=4, zero_points=grid.zero_points, pre_quant_scale=1 / scale
        )
        losses.append(float(((linear.dequantize() - weight) @ statistics.sketch.t()).square().sum()))
    assert losses[1] < 0.6 * losses[0]


def test_a_sample_of_many_outputs_finds_the_scale_of_all() -> None:
    weight, statistics = problem(12, outliers=4, rows=2000)
    found = search_scale([weight], statistics.magnitude, statistics.sketch, F32)
    halves = [
        search_scale([half], statistics.magnitude, statistics.sketch, F32) for half in weight.split(500)
    ]
    assert all(abs(found.alpha - half.alpha) <= 0.1 for half in halves)
