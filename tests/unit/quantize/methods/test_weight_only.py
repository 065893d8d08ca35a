import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.linear import QuantizedLinear
from quantize.methods.base import Group
from quantize.methods.weight_only import Int4WeightOnly, Int8WeightOnly


def rounded(
    method: Int4WeightOnly | Int8WeightOnly, weight: torch.Tensor, wants: bool = False
) -> QuantizedLinear:
    return method.quantize(Group({"a": weight}, {}, None, wants), None).linears["a"]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    st.integers(1, 4),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.sampled_from([Int8WeightOnly(), Int4WeightOnly(8), Int4WeightOnly(8, symmetric=False)]),
)
def test_no_weight_moves_by_more_than_half_a_step(
    seed: int, size: float, rows: int, dtype: torch.dtype, method: Int4WeightOnly | Int8WeightOnly
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, 24, generator=random) * size).to(dtype)
    linear = rounded(method, weight)
    assert torch.equal(linear.scales, linear.scales.to(dtype).float())
    steps = linear.scales.double().repeat_interleave(linear.group_size, dim=1)
    # Scales are rounded to the dtype: a group's end may lie a little outside of the grid.
    top = 2 ** (linear.bits - 1) * (1.0 if linear.zero_points is None else 2.0)
    slack = 0.5 + top * torch.finfo(dtype).eps + 1e-5
    assert float(((linear.dequantize(torch.float64) - weight.double()) / steps).abs().max()) <= slack
    again = rounded(method, linear.dequantize().to(dtype))
    if dtype == torch.float32:
        torch.testing.assert_close(again.dequantize(), linear.dequantize(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", [Int8WeightOnly(), Int4WeightOnly(4), Int4WeightOnly(4, symmetric=False)])
def test_zeros_one_row_and_one_channel(method: Int4WeightOnly | Int8WeightOnly) -> None:
    assert not rounded(method, torch.zeros(1, 4)).dequantize().any()
    weight = torch.tensor([[0.0, 0.0, 0.0, 8.0]])
    assert torch.equal(rounded(method, weight).dequantize(), weight)
    if isinstance(method, Int8WeightOnly):
        assert float(rounded(method, torch.tensor([[-3.0]])).dequantize()) == -3


def test_int4_stores_ones_where_the_form_wants_a_scale_and_int8_nothing() -> None:
    weight = torch.randn(4, 8).half()
    ones = rounded(Int4WeightOnly(4), weight, wants=True).pre_quant_scale
    assert torch.equal(ones, torch.ones(8).half())  # type: ignore[arg-type]
    assert rounded(Int4WeightOnly(4), weight).pre_quant_scale is None
    assert rounded(Int8WeightOnly(), weight, wants=True).pre_quant_scale is None


def test_zero_points_serve_weights_of_one_sign() -> None:
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) + 0.1
    errors = [
        float((rounded(Int4WeightOnly(32, symmetric), weight).dequantize() - weight).norm())
        for symmetric in (True, False)
    ]
    assert errors[1] < 0.6 * errors[0]
    assert rounded(Int4WeightOnly(32, False), weight).codes.dtype == torch.uint8
