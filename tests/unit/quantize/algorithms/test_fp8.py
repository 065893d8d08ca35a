import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.algorithms.fp8 import E4M3, amax_scale, to_e4m3
from quantize.linear import QuantizedLinear
from quantize.methods.base import Group
from quantize.methods.fp8 import Fp8, Fp8Rowwise
from quantize.methods.statistics import CPU


def every_number() -> torch.Tensor:
    """float64: every finite E4M3 number, rising; its index is its code's order, so even indices end in 0."""
    magnitudes = torch.arange(0, 0x7F, dtype=torch.uint8).view(E4M3).double()
    return torch.cat((-magnitudes.flip(0)[:-1], magnitudes))


@settings(deadline=None)
@given(
    st.lists(
        st.floats(min_value=-500, max_value=500, width=32)
        | st.floats(min_value=-(2**-5), max_value=2**-5, width=32)
        | st.sampled_from([448.0, 464.0, 465.0, 1e30, 2**-10, 3 * 2**-10, 17.0, 19.0, 2**-149]),
        min_size=1,
    )
)
def test_codes_are_the_nearest_numbers_ties_to_even(values: list[float]) -> None:
    found = to_e4m3(torch.tensor(values)).double()
    numbers = every_number()
    for value, code in zip(torch.tensor(values).double(), found, strict=True):
        distances = (numbers - value.clamp(-448, 448)).abs()
        nearest = (distances == distances.min()).nonzero().flatten()
        even = [index for index in nearest.tolist() if (index - 126) % 2 == 0]
        assert float(code) == float(numbers[even[0] if len(nearest) == 2 else nearest[0]])


def test_every_number_is_its_own_code() -> None:
    numbers = every_number()
    assert torch.equal(to_e4m3(numbers.float()).double(), numbers)


@pytest.mark.parametrize("amax", [0.0, 1e-45, 1e-38, 1e-20, 1.0, 3e38])
def test_scales_can_be_divided_by_and_reach_every_value(amax: float) -> None:
    scale = amax_scale(torch.tensor(amax))
    assert bool(scale.isfinite())
    assert float(scale) >= torch.finfo(torch.float32).tiny
    value = torch.tensor(amax)
    restored = to_e4m3(value / scale).float() * scale
    torch.testing.assert_close(restored, value, rtol=1e-6, atol=torch.finfo(torch.float32).tiny)


def make_group(**weights: torch.Tensor) -> Group:
    return Group(weights, {"q": torch.ones(8).bfloat16()} if "q" in weights else {}, None, False)


def test_a_group_shares_its_scales() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8, 16).bfloat16(), 3 * torch.randn(4, 16).bfloat16()
    x = torch.randn(40, 16).bfloat16()
    statistics = Fp8().observe(16, 0, CPU)
    statistics.update(x[:30])
    statistics.update(x[30:])
    answer = Fp8().quantize(make_group(q=q, k=k), statistics)
    for name, weight in (("q", q), ("k", k)):
        linear = answer.linears[name]
        assert linear.scales.shape == (1, 1)
        assert float(linear.scales) == float(k.abs().max().float() / 448)
        assert float(linear.input_scale) == float(x.abs().max().float() / 448)  # type: ignore[arg-type]
        # Half a step of three mantissa bits, or of the subnormal numbers.
        bound = torch.maximum(weight.float().abs() / 16, linear.scales * 2**-10) * (1 + 1e-6)
        assert bool(((linear.dequantize() - weight.float()).abs() <= bound).all())
        assert 0.005 < answer.report[name]["relative_error_of_weight"] < 0.04
        assert answer.report[name]["relative_error"] > answer.report[name]["relative_error_of_weight"]
    assert torch.equal(answer.linears["q"].bias, torch.ones(8).bfloat16())  # type: ignore[arg-type]
    assert answer.norm is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (5, 1), (6, 24)])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 6e4])
def test_any_shape_and_size(dtype: torch.dtype, shape: tuple[int, int], size: float) -> None:
    torch.manual_seed(1)
    weight = (torch.rand(shape) - 0.5).mul(size).to(dtype)
    x = (torch.randn(20, shape[1]) * size).clamp(-6e4, 6e4).to(dtype)
    statistics = Fp8().observe(shape[1], 0, CPU)
    statistics.update(x)
    for answer in (
        Fp8().quantize(make_group(a=weight), statistics),
        Fp8Rowwise().quantize(make_group(a=weight), None),
    ):
        linear = answer.linears["a"]
        assert bool((linear.codes.float().abs() <= 448).all())
        assert bool((linear.scales > 0).all())
        assert answer.report["a"]["relative_error"] <= 0.0625
        again = QuantizedLinear(to_e4m3(linear.dequantize() / linear.scales), linear.scales, bits=8)
        assert torch.equal(again.dequantize(), linear.dequantize())


def test_rows_have_scales_of_their_own() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0], [1e-9, 448e3]])
    linear = Fp8Rowwise().quantize(make_group(a=weight), None).linears["a"]
    torch.testing.assert_close(linear.scales, torch.tensor([[2 / 448], [1.0], [1000.0]]))
    assert linear.input_scale is None
    torch.testing.assert_close(linear.dequantize(), torch.tensor([[1.0, -2.0], [0.0, 0.0], [0.0, 448e3]]))
