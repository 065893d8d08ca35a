import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.algorithms.gptq import error_feedback, round_with_feedback
from quantize.algorithms.integer import Grid, GridSpec, encode_groups, fit_grid, quantize_groups
from toolchain.errors import QuantizeError

DAMP = 0.01


def problem(seed: int, rows: int, columns: int, tokens: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [rows, columns], and the Gram matrix of inputs that are correlated, some of them large."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=random)
    x = x + torch.randn(tokens, 8, generator=random) @ torch.randn(8, columns, generator=random)
    x[:, torch.randperm(columns, generator=random)[:3]] *= 8
    return torch.randn(rows, columns, generator=random), x.t() @ x


def gptq(
    weight: torch.Tensor, gram: torch.Tensor, scales: torch.Tensor, *, act_order: bool = True
) -> torch.Tensor:
    feedback = error_feedback(gram, torch.ones(gram.shape[0]), damp=DAMP, act_order=act_order)
    return round_with_feedback(weight, Grid(scales, None, 4), feedback)


def textbook(
    weight: torch.Tensor, gram: torch.Tensor, scales: torch.Tensor, *, act_order: bool
) -> torch.Tensor:
    """The paper's algorithm, column by column in float64, by the Cholesky factor of the inverse."""
    columns = gram.shape[0]
    order = gram.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(columns)
    hessian = gram.double()[order][:, order]
    hessian += DAMP * hessian.diagonal().mean() * torch.eye(columns)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    rest = weight.double()[:, order]
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for position, column in enumerate(order.tolist()):
        scale = scales[:, column * scales.shape[1] // columns].double()
        code = (rest[:, position] / scale).round().clamp(-8, 7)
        error = (rest[:, position] - code * scale) / factor[position, position]
        rest[:, position:] -= error.unsqueeze(1) * factor[position, position:]
        codes[:, column] = code.to(torch.int8)
    return codes


def loss(codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """tr(E G E^T)."""
    group_size = weight.shape[1] // scales.shape[1]
    change = (codes * scales.repeat_interleave(group_size, dim=1) - weight.float()).double()
    return (change @ gram.double() * change).sum()


@pytest.mark.parametrize("act_order", [False, True])
def test_codes_are_those_of_the_paper(act_order: bool) -> None:
    equal = total = 0
    for seed, (rows, columns, group) in enumerate(
        [(40, 64, 32), (7, 128, 128), (64, 192, 64), (96, 320, 64)]
    ):
        weight, gram = problem(seed, rows, columns)
        _, scales = quantize_groups(weight, group, torch.bfloat16)
        expected = textbook(weight, gram, scales, act_order=act_order)
        equal += int((gptq(weight, gram, scales, act_order=act_order) == expected).sum())
        total += expected.numel()
    assert equal >= 0.999 * total


def test_the_output_error_falls_well_below_that_of_rounding() -> None:
    ratios = []
    for seed in range(40):
        weight, gram = problem(seed, rows=16, columns=160)
        codes, scales = quantize_groups(weight, 32, torch.bfloat16)
        feedback = gptq(weight, gram, scales)
        ratios.append(float(loss(feedback, scales, weight, gram) / loss(codes, scales, weight, gram)))
    assert max(ratios) < 1
    assert sum(ratios) / len(ratios) < 0.5


def test_a_scale_of_the_inputs_enters_as_if_they_had_been_divided() -> None:
    weight, gram = problem(5, rows=24, columns=64)
    scale = torch.linspace(0.25, 4, 64)
    _, scales = quantize_groups(weight * scale, 32, torch.bfloat16)
    feedback = error_feedback(gram, scale, damp=DAMP, act_order=True)
    codes = round_with_feedback(weight * scale, Grid(scales, None, 4), feedback)
    expected = textbook(weight * scale, gram / torch.outer(scale, scale), scales, act_order=True)
    assert (codes == expected).float().mean() > 0.99


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 5]), st.sampled_from([32, 96]), st.booleans())
def test_independent_inputs_leave_plain_rounding(seed: int, rows: int, group: int, act_order: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 96, generator=random)
    codes, scales = quantize_groups(weight, group, torch.bfloat16)
    diagonal = torch.diag(torch.rand(96, generator=random))
    assert torch.equal(gptq(weight, diagonal, scales, act_order=act_order), codes)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 6]), st.sampled_from([16, 160]))
def test_a_weight_on_the_grid_stays(seed: int, rows: int, group: int) -> None:
    _, gram = problem(seed, rows, 160)
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, 160), generator=random).to(torch.int8)
    scales = (torch.rand(rows, 160 // group, generator=random) + 0.1).bfloat16().float()
    weight = codes * scales.repeat_interleave(group, dim=1)
    assert torch.equal(gptq(weight, gram, scales), codes)


def test_silent_channels_are_rounded_by_themselves() -> None:
    weight, gram = problem(6, rows=12, columns=64)
    silent = torch.tensor([0, 17, 63])
    gram[silent] = 0
    gram[:, silent] = 0
    codes, scales = quantize_groups(weight, 32, torch.bfloat16)
    found = gptq(weight, gram, scales)
    assert torch.equal(found[:, silent], codes[:, silent])
    assert loss(found, scales, weight, gram) < loss(codes, scales, weight, gram)
    assert torch.equal(gptq(weight, torch.zeros(64, 64), scales), codes)


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e9, 1e25])
def test_the_size_of_the_inputs_does_not_matter(size: float) -> None:
    weight, gram = problem(7, rows=12, columns=64)
    _, scales = quantize_groups(weight, 32, torch.bfloat16)
    expected = gptq(weight, gram, scales)
    assert (gptq(weight, gram * size, scales) == expected).float().mean() > 0.99


@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_few_tokens_are_no_obstacle(damp: float) -> None:
    """Three tokens leave the Gram matrix of 256 channels singular, and float32 makes it indefinite."""
    random = torch.Generator().manual_seed(8)
    x = torch.randn(3, 256, generator=random) * torch.logspace(-3, 3, 256)
    weight = torch.randn(8, 256, generator=random)
    codes, scales = quantize_groups(weight, 64, torch.bfloat16)
    feedback = error_feedback(x.t() @ x, torch.ones(256), damp=damp, act_order=True)
    assert bool(feedback.factor.isfinite().all())
    found = round_with_feedback(weight, Grid(scales, None, 4), feedback)
    assert loss(found, scales, weight, x.t() @ x) < loss(codes, scales, weight, x.t() @ x)


def test_a_bfloat16_weight_is_that_weight_in_float32() -> None:
    weight, gram = problem(9, rows=8, columns=64)
    weight = weight.bfloat16()
    _, scales = quantize_groups(weight, 32, torch.bfloat16)
    assert torch.equal(gptq(weight, gram, scales), gptq(weight.float(), gram, scales))


def test_squares_beyond_float32_are_an_error() -> None:
    weight, gram = problem(10, rows=4, columns=32)
    gram[3, 3] = torch.inf
    with pytest.raises(QuantizeError, match="squares of the calibration inputs exceed float32"):
        gptq(weight, gram, torch.ones(4, 1))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_grid_with_zero_points_is_rounded_to_with_feedback_too(bits: int) -> None:
    weight, gram = problem(11, rows=24, columns=160)
    weight += 0.5
    grid = fit_grid(weight, GridSpec(32, torch.float32, bits=bits, symmetric=False))
    assert grid.zero_points is not None
    feedback = error_feedback(gram, torch.ones(160), damp=DAMP, act_order=True)
    losses = []
    for codes in (encode_groups(weight, grid), round_with_feedback(weight, grid, feedback)):
        assert codes.dtype == torch.uint8
        assert int(codes.max()) < 2**bits
        zeros = grid.zero_points.repeat_interleave(32, dim=1)
        losses.append(loss(codes.float() - zeros, grid.scales, weight, gram))
    assert losses[1] < 0.6 * losses[0]
