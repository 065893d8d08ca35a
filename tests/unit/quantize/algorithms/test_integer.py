import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantize.algorithms.integer import (
    GridSpec,
    encode_groups,
    fit_grid,
    group_scales,
    quantize_groups,
    sampled_rows,
)
from quantize.linear import QuantizedLinear

WEIGHTS = arrays("float32", (6, 16), elements=st.floats(-1e4, 1e4, width=32))
DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])


@given(WEIGHTS, DTYPES, st.sampled_from([4, 8, 16]))
def test_rounding_is_to_the_nearest_code(values: object, dtype: torch.dtype, group_size: int) -> None:
    weight = torch.tensor(values)
    codes, scales = quantize_groups(weight, group_size, dtype)
    assert codes.dtype == torch.int8
    assert scales.shape == (6, 16 // group_size)
    assert torch.equal(scales, scales.to(dtype).float())
    assert bool((scales >= torch.finfo(dtype).tiny).all())
    spacing = scales.repeat_interleave(group_size, dim=1)
    error = (QuantizedLinear(codes, scales, bits=4).dequantize(torch.float64) - weight).abs()
    # Half a step, and at the ends of the range what rounding the scale to `dtype` takes away.
    slack = 7 * torch.finfo(dtype).eps
    assert bool((error <= spacing * (0.5 + slack)).all())


def test_a_group_of_zeros_has_scale_one() -> None:
    weight = torch.zeros(2, 8)
    weight[1, 5] = 0.7
    codes, scales = quantize_groups(weight, 4, torch.float32)
    assert scales[0].tolist() == [1.0, 1.0]
    assert scales[1].tolist() == [1.0, pytest.approx(0.1)]
    assert codes[1].tolist() == [0, 0, 0, 0, 0, 7, 0, 0]


def test_no_scale_is_denormal() -> None:
    scales = group_scales(torch.tensor([1e-44, 1e-38, 1e-7]), 4, torch.float16)
    assert scales.tolist() == [pytest.approx(6.1e-5, rel=1e-2)] * 3


def test_clipping_narrows_the_range() -> None:
    weight = torch.tensor([[1.0, 0.1, 0.1, 0.1]])
    codes, scales = quantize_groups(weight, 4, torch.float32, ratios=torch.tensor([[0.5]]))
    assert scales.item() == pytest.approx(0.5 / 7)
    assert codes.tolist() == [[7, 1, 1, 1]]


@given(WEIGHTS, DTYPES, st.sampled_from([4, 8, 16]), st.sampled_from([4, 8]))
def test_zero_points_cover_the_range_of_each_group(
    values: object, dtype: torch.dtype, group_size: int, bits: int
) -> None:
    weight = torch.tensor(values)
    grid = fit_grid(weight, GridSpec(group_size, dtype, bits, symmetric=False))
    codes = encode_groups(weight, grid)
    assert codes.dtype == torch.uint8
    zeros = grid.zero_points
    assert zeros is not None
    assert torch.equal(zeros, zeros.round())
    assert bool(((zeros >= 0) & (zeros < 2**bits)).all())
    assert torch.equal(grid.scales, grid.scales.to(dtype).float())
    linear = QuantizedLinear(codes, grid.scales, bits=bits, zero_points=zeros)
    error = (linear.dequantize(torch.float64) - weight).abs()
    # A step at the most, since the zero point is rounded as well, and what rounding the scale takes away.
    slack = 2**bits * torch.finfo(dtype).eps
    assert bool((error <= grid.scales.repeat_interleave(group_size, dim=1) * (1 + slack)).all())
    # Zero is on the grid: a weight that is 0 stays 0.
    assert bool((linear.dequantize()[weight == 0] == 0).all())


def test_a_sample_of_rows_is_always_the_same() -> None:
    matrix = torch.arange(100).view(50, 2)
    drawn = sampled_rows(matrix, 10)
    assert drawn.shape == (10, 2)
    assert len(drawn[:, 0].unique()) == 10
    assert torch.equal(drawn, sampled_rows(matrix, 10))
    assert sampled_rows(matrix, 50) is matrix
