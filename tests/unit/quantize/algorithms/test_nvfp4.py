import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.algorithms.nvfp4 import block_scales, global_scale, quantize_blocks
from quantize.linear import QuantizedLinear
from quantize.methods.base import Group
from quantize.methods.nvfp4 import Nvfp4
from quantize.methods.statistics import CPU

MAGNITUDES = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def restored(codes: torch.Tensor, scales: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float64."""
    return QuantizedLinear(codes, scales, bits=4, weight_scale_2=scale).dequantize(torch.float64)


def outputs_lost(weight: torch.Tensor, found: torch.Tensor, x: torch.Tensor) -> float:
    return float(((found - weight.double()) @ x.double().t()).square().sum())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from([1e-30, 1e-4, 1.0, 1e4, 1e30]), st.integers(1, 5))
def test_codes_are_the_nearest_numbers(seed: int, size: float, rows: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 48, generator=random) * size
    weight[:, 16:32] *= 2.0 ** torch.randint(-12, 1, (rows, 1), generator=random)
    scale = global_scale(weight.abs().amax())
    codes, scales = quantize_blocks(weight, scale)
    assert torch.equal(scales, scales.to(torch.float8_e4m3fn).float())
    assert float(scales.min()) >= 2**-9
    steps = (scales.double() * scale.double()).repeat_interleave(16, dim=1)
    wanted = (weight.double() / steps).clamp(-6, 6)
    distances = (wanted.abs().unsqueeze(-1) - MAGNITUDES).abs()
    assert bool(torch.isin(codes.double().abs(), MAGNITUDES).all())
    loss = (codes.double() - wanted).abs() - distances.amin(dim=-1)
    assert float(loss.max()) <= 1e-6
    again, same = quantize_blocks(restored(codes, scales, scale).float(), scale)
    kept = scales == same
    assert bool(kept.float().mean() >= 0.5)
    assert torch.equal(
        again.float()[kept.repeat_interleave(16, 1)], codes.float()[kept.repeat_interleave(16, 1)]
    )


def test_ties_go_to_even_codes_and_zeros_keep_signs_of_what_was_rounded() -> None:
    row = torch.tensor([[6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5, 0, -0.0, -0.1, 0.1, 3]])
    codes, scales = quantize_blocks(row, torch.tensor(1.0))
    assert float(scales) == 1
    expected = [6, 0, 1, 1, 2, 2, 4, 4, -0.0, -1, -4, 0, 0, -0.0, 0, 3]
    assert codes.float().flatten().tolist() == expected
    signs = codes.view(torch.uint8).flatten() >> 7
    assert signs.tolist() == [0] * 8 + [1, 1, 1, 0, 0, 1, 0, 0]


def test_a_block_of_zeros_has_scale_one() -> None:
    weight = torch.zeros(2, 32)
    weight[1, 20] = 3
    codes, scales = quantize_blocks(weight, global_scale(weight.abs().amax()))
    assert scales.tolist() == [[1, 1], [1, 448]]
    assert float(codes.float().abs().sum()) == 6
    assert float(global_scale(torch.tensor(0.0))) == 1


def test_a_scale_that_e4m3_cannot_hold_is_its_largest() -> None:
    assert float(block_scales(torch.tensor(6.0 * 448), torch.tensor(1.0), 1.5)) == 448
    assert float(block_scales(torch.tensor(1e-9), torch.tensor(1.0))) == 2**-9


def test_the_search_loses_less_of_the_output() -> None:
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(32, 64, generator=random)
    x = torch.randn(500, 64, generator=random) * torch.logspace(-1, 1, 64)
    x = x + torch.randn(500, 4, generator=random) @ torch.randn(4, 64, generator=random)
    statistics = Nvfp4().observe(64, 0, CPU)
    statistics.update(x)
    scale = global_scale(weight.abs().amax())
    plain, searched = (
        restored(*quantize_blocks(weight, scale, blocks), scale)
        for blocks in (None, statistics.inputs.blocks)
    )
    for at in range(0, 64, 16):
        columns = slice(at, at + 16)
        for row in range(32):
            pieces = weight[row : row + 1, columns], x[:, columns]
            lost = outputs_lost(pieces[0], searched[row : row + 1, columns], pieces[1])
            assert lost <= outputs_lost(pieces[0], plain[row : row + 1, columns], pieces[1]) * (1 + 1e-4)
    assert outputs_lost(weight, searched, x) < 0.95 * outputs_lost(weight, plain, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 6e4])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_group_shares_its_scales(dtype: torch.dtype, size: float, rows: int) -> None:
    torch.manual_seed(0)
    up, gate = ((torch.rand(rows, 32) - 0.5).mul(size).to(dtype) for _ in range(2))
    x = (torch.rand(60, 32) - 0.5).mul(size).to(dtype)
    statistics = Nvfp4().observe(32, 0, CPU)
    statistics.update(x)
    answer = Nvfp4().quantize(Group({"up": up, "gate": gate}, {}, None, False), statistics)
    wanted = max(float(up.abs().max()), float(gate.abs().max())) / 2688
    for name in ("up", "gate"):
        linear = answer.linears[name]
        assert float(linear.weight_scale_2) == pytest.approx(wanted or 1, rel=1e-6)  # type: ignore[arg-type]
        assert float(linear.input_scale) == pytest.approx(float(x.abs().max()) / 2688 or 1, rel=1e-6)  # type: ignore[arg-type]
        assert linear.is_fp4
        assert linear.group_size == 16
        assert answer.report[name]["relative_error"] < 0.3
