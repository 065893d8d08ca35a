"""Rounded activations against their definitions, value by value in float64."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quantize.formats.base import (
    FP8,
    FP8_ROWWISE,
    INT8_DYNAMIC,
    INT8_SQ,
    INT8_WO,
    NVFP4,
    NVFP4_WO,
    W4A8_AWQ,
    W4A16_AWQ,
)
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from quantize.simulate import cache_rounding, input_rounding, round_e2m1, round_e4m3

FIXTURES = Path(__file__).parents[2] / "data" / "quantized"

E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
E4M3 = E4M3[E4M3.isfinite()]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
INT8 = torch.arange(-128, 128, dtype=torch.float64)


def linear(width: int = 32, **scales: Tensor) -> QuantizedLinear:
    return QuantizedLinear(torch.zeros(2, width, dtype=torch.int8), torch.ones(2, 1), bits=8, **scales)


def inputs(width: int = 32) -> Tensor:
    x = torch.randn(3, 5, width, generator=torch.Generator().manual_seed(0)) * 3
    x[0, 0] = 0  # a token of zeros
    x[1, 1, 3] = 300  # an outlier
    return x


def distance(x: Tensor, grid: Tensor) -> Tensor:
    """How far the nearest value of the grid is."""
    return (x.double().unsqueeze(-1) - grid).abs().amin(-1)


@given(st.lists(st.floats(-600, 600, width=32), min_size=1, max_size=50))
def test_e4m3_is_the_nearest_code(values: list[float]) -> None:
    x = torch.tensor(values)
    rounded = round_e4m3(x)
    assert distance(rounded, E4M3).max() == 0
    assert (rounded.double() - x.double()).abs().equal(distance(x, E4M3))


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=50))
def test_e2m1_is_the_nearest_code(values: list[float]) -> None:
    x = torch.tensor(values)
    rounded = round_e2m1(x)
    grid = torch.cat((E2M1, -E2M1))
    assert distance(rounded, grid).max() == 0
    assert (rounded.double() - x.double()).abs().equal(distance(x, grid))


def test_ties_of_e2m1_go_to_the_even_code() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    wanted = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert round_e2m1(ties).equal(wanted)
    assert round_e2m1(-ties).equal(-wanted)


@pytest.mark.parametrize(
    ("algo", "grid", "scale"), [(FP8, E4M3, 0.01), (W4A8_AWQ, E4M3, 0.01), (INT8_SQ, INT8, 0.05)]
)
@pytest.mark.parametrize("smooth", [False, True])
def test_a_static_scale(algo: str, grid: Tensor, scale: float, smooth: bool) -> None:
    x = inputs()
    factor = torch.linspace(0.5, 2, 32) if smooth else None
    more = {} if factor is None else {"pre_quant_scale": factor}
    rounded = input_rounding(linear(input_scale=torch.tensor(scale), **more), algo)
    assert rounded is not None
    times = torch.ones(32, dtype=torch.float64) if factor is None else factor.double()
    codes = rounded(x).double() * times / scale
    exact = x.double() * times / scale
    assert codes.max() == pytest.approx(grid.max().item(), rel=1e-5)  # the outlier is cut off
    assert distance(codes, grid).max() < 1e-3
    assert ((codes - exact).abs() - distance(exact, grid)).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("algo", "grid", "top"), [(FP8_ROWWISE, E4M3, 448), (FP8, E4M3, 448), (INT8_DYNAMIC, INT8, 127)]
)
def test_without_a_scale_each_token_has_its_own(algo: str, grid: Tensor, top: int) -> None:
    x = inputs()
    rounded = input_rounding(linear(), algo)
    assert rounded is not None
    scale = x.double().abs().amax(-1, keepdim=True) / top
    scale[scale == 0] = 1
    codes, exact = rounded(x).double() / scale, x.double() / scale
    assert distance(codes, grid).max() < 1e-3
    assert ((codes - exact).abs() - distance(exact, grid)).abs().max() < 1e-3
    assert rounded(x)[0, 0].count_nonzero() == 0


def test_nvfp4_has_a_scale_for_each_block_of_sixteen() -> None:
    x = inputs()
    unit = x.abs().max() / (448 * 6)
    rounded = input_rounding(linear(input_scale=unit), NVFP4)
    assert rounded is not None
    found = rounded(x).double().view(-1, 2, 16)
    for token, blocks in enumerate(x.double().view(-1, 2, 16)):
        for block, values in enumerate(blocks):
            wanted_scale = values.abs().max() / 6 / unit.double()
            scale = E4M3[(E4M3 - wanted_scale).abs().argmin()] * unit.double()
            nearest = distance(values / scale, torch.cat((E2M1, -E2M1))) * scale if scale else values.abs()
            off = (found[token, block] - values).abs()
            assert (off - nearest).abs().max() < 1e-5 * max(1, float(values.abs().max()))


@pytest.mark.parametrize("algo", [W4A16_AWQ, INT8_WO, NVFP4_WO])
def test_weight_only_schemes_leave_the_input_alone(algo: str) -> None:
    assert input_rounding(linear(), algo) is None
    assert input_rounding(linear(pre_quant_scale=torch.ones(32)), algo) is None


@pytest.mark.parametrize(("algo", "grid"), [("FP8", E4M3), ("INT8", INT8)])
def test_a_cache_rounds_to_its_codes(algo: str, grid: Tensor) -> None:
    x = inputs()
    scale = torch.tensor(0.5)
    codes = cache_rounding(algo, scale)(x).double() * 2
    assert (codes - x.double() * 2).abs().equal(distance(x.double() * 2, grid))


@pytest.mark.parametrize(
    ("name", "top", "least", "most"),
    [
        ("fp8", 448, 0.01, 0.04),
        ("w4a8_awq", 448, 0.01, 0.04),
        ("fp8_pc_pt", 448, 0.01, 0.04),
        ("int8_sq", 127, 0.003, 0.03),
        ("nvfp4", 448 * 6, 0.05, 0.15),
    ],
)
def test_what_modelopt_writes_rounds_its_activations(name: str, top: int, least: float, most: float) -> None:
    checkpoint = QuantizedCheckpoint.open(FIXTURES / "modelopt" / name)
    for module, scheme in checkpoint.scheme.linears.items():
        own = checkpoint.linear(module)
        assert isinstance(own, QuantizedLinear)
        rounded = input_rounding(own, scheme.quant_algo)
        assert rounded is not None
        x = torch.randn(4, own.in_features, generator=torch.Generator().manual_seed(1))
        if own.input_scale is not None:
            x *= own.input_scale * top / x.abs().max()  # as calibration saw it
        if own.pre_quant_scale is not None:
            x /= own.pre_quant_scale
        error = (rounded(x) - x).norm() / x.norm()
        assert least < error < most
