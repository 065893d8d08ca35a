import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantize.formats.base import W4A16_AWQ, LinearScheme
from quantize.formats.modelopt import ModelOpt
from quantize.formats.packing import unpack_int4_rows
from quantize.linear import QuantizedLinear

CODES = arrays("int8", (4, 12), elements=st.integers(-8, 7))
SCALES = arrays("float32", (4, 3), elements=st.floats(2**-10, 8, width=32))
PRE_QUANT = arrays("float32", (12,), elements=st.floats(2**-6, 64, width=32))


@given(CODES, SCALES, PRE_QUANT)
def test_dequantize_is_its_formula(codes: object, scales: object, pre_quant: object) -> None:
    linear = QuantizedLinear(
        torch.tensor(codes), torch.tensor(scales), bits=4, pre_quant_scale=torch.tensor(pre_quant)
    )
    assert (linear.out_features, linear.in_features, linear.group_size) == (4, 12, 4)
    weight = linear.dequantize(torch.float64)
    for o in range(4):
        for i in range(12):
            expected = (
                float(linear.codes[o, i])
                * float(linear.scales[o, i // 4])
                * float(torch.tensor(pre_quant)[i])
            )
            assert float(weight[o, i]) == expected


@given(CODES, SCALES)
def test_the_stored_form_holds_the_same_linear(codes: object, scales: object) -> None:
    linear = QuantizedLinear(torch.tensor(codes), torch.tensor(scales), bits=4)
    stored = ModelOpt().linear_tensors("m", linear, LinearScheme(W4A16_AWQ, 4), torch.bfloat16)
    again = QuantizedLinear(unpack_int4_rows(stored["m.weight"]), stored["m.weight_scale"], bits=4)
    assert torch.equal(again.dequantize(), linear.dequantize())


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("scales", [1, 40])
def test_a_sample_is_rows_of_the_whole(codes: torch.dtype, scales: int) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randint(-8, 8, (40, 6), generator=random).to(codes)
    linear = QuantizedLinear(values, torch.rand(scales, 1, generator=random), bits=8, bias=torch.arange(40.0))
    sample = linear.sampled(10)
    assert sample.bias is not None
    rows = sample.bias.long()
    assert torch.equal(sample.dequantize(), linear.dequantize()[rows])
    assert torch.equal(linear.sampled(40).dequantize(), linear.dequantize())


def test_zero_points_are_subtracted() -> None:
    codes = torch.tensor([[0, 15], [8, 1]], dtype=torch.uint8)
    linear = QuantizedLinear(codes, torch.full((2, 1), 0.5), bits=4, zero_points=torch.tensor([[8.0], [7.0]]))
    assert linear.dequantize().tolist() == [[-4.0, 3.5], [0.5, -3.0]]
