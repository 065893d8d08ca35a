"""GPTQ, rounding with error feedback (Frantar et al., arXiv 2210.17323), on tensors alone.

Quantize W [out, in] column by column; what rounding one column does to the output, the columns not yet
quantized are moved to undo. With the Gram matrix G = X^T X of the inputs and E = W - Q, the squared error of
the output is tr(E G E^T).

The paper moves the rest by rows of the Cholesky factor of G^-1. No inverse is needed: with G = L L^T,
L lower triangular, the error is || E L ||^2, and column j of E L is, up to the factor L_jj,

    e_j + sum over i > j of e_i L_ij / L_jj,

so from the last column to the first, each is rounded after adding that sum, which is then known, to w_j. In
exact arithmetic this is GPTQ (it is Babai's nearest plane on the same lattice). An order of the columns
is an order of the rows and columns of G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.algorithms.integer import Grid
from toolchain.errors import QuantizeError

# Columns that are rounded before their effect on all others is computed in one product; and within these.
_BLOCK = 128
_INNER = 16
# float32 can make the Gram matrix of few tokens indefinite, by less than its mean diagonal: then damp more.
_MORE_DAMP = (0.0, 0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Feedback:
    """How the rounding errors of columns bear on each other; equal for all weights with one input.

    Attributes:
        order: int64 [in], the columns from the last that is rounded to the first.
        factor: float32 [in, in], lower triangular with ones on the diagonal, L_ij / L_jj in that order.
    """

    order: Tensor
    factor: Tensor


def error_feedback(gram_II: Tensor, scale_I: Tensor, *, damp: float, act_order: bool) -> Feedback:
    """The feedback of inputs X / scale, from the Gram matrix of X.

    Args:
        gram_II: float32 [in, in], X^T X.
        scale_I: float32 [in], positive.
        damp: this part of the mean of the diagonal is added to the diagonal. It bounds how far columns move
            for the sake of inputs that the calibration text may not represent.
        act_order: whether the columns of the largest inputs are rounded first; else the first columns are.

    Raises:
        QuantizeError: the matrix is not finite.
    """
    energy_I = gram_II.diagonal() / scale_I.square()
    if energy_I.isfinite().all():
        descending_I = torch.arange(len(energy_I) - 1, -1, -1, device=energy_I.device)
        order_I = energy_I.argsort(stable=True) if act_order else descending_I
        # A mean of 1 keeps clear of the ends of float32. Inputs that are all 0 stay 0.
        mean = float(energy_I.double().mean()) or 1.0
        unit_I = (scale_I[order_I].double() * mean**0.5).float()
        ordered_II = gram_II[order_I.unsqueeze(1), order_I].div_(unit_I).div_(unit_I.unsqueeze(1))
        diagonal_I = ordered_II.diagonal().clone()
        for more in _MORE_DAMP:
            ordered_II.diagonal().copy_(diagonal_I + (damp + more))
            factor_II, failure = torch.linalg.cholesky_ex(ordered_II)
            if not failure:
                return Feedback(order_I, factor_II.div_(factor_II.diagonal().clone()))
    raise QuantizeError(
        "the squares of the calibration inputs exceed float32",
        where="quantization.method",
        fix="use method awq, and check the source model's weights: inputs are never that large",
    )


def round_with_feedback(weight_OI: Tensor, grid: Grid, feedback: Feedback) -> Tensor:
    """Choose codes on a given grid such that the errors of columns make up for each other.

    The grid belongs to groups of columns in their stored order, whatever the order of rounding: no index
    of groups has to be stored.

    Args:
        weight_OI: [out, in].
        grid: [out, in / group_size].
        feedback: of the same inputs.

    Returns:
        codes [out, in], int8, or uint8 for a grid with zero points.
    """
    group_size = weight_OI.shape[1] // grid.scales.shape[1]
    order_I, factor_II = feedback.order, feedback.factor
    # Columns as rows, so that each is contiguous.
    weight_IO = weight_OI.float().t().index_select(0, order_I)
    group_I = order_I // group_size
    codes_IO = grid.stored(torch.empty_like(weight_IO))
    change_IO = torch.empty_like(weight_IO)  # E = W - Q, of the columns that have been rounded
    round_block = _round_block_cuda if weight_IO.is_cuda else _round_block
    for end in range(len(order_I), 0, -_BLOCK):
        begin = max(0, end - _BLOCK)
        block = slice(begin, end)
        wanted_IO = torch.addmm(weight_IO[block], factor_II[end:, block].t(), change_IO[end:])
        round_block(
            wanted_IO,
            weight_IO[block],
            grid.of_columns(group_I[block]),
            factor_II[block, block],
            codes_IO[block],
            change_IO[block],
        )
    codes_OI = torch.empty_like(codes_IO.t(), memory_format=torch.contiguous_format)
    codes_OI[:, order_I] = codes_IO.t()
    return codes_OI


def _round_block(
    wanted_IO: Tensor, weight_IO: Tensor, grid: Grid, factor_II: Tensor, codes_IO: Tensor, change_IO: Tensor
) -> None:
    """Round a block of columns, [block, out], from the last to the first; fill in codes and change.

    Smaller blocks within it keep most of the work in matrix products.
    """
    for end in range(len(wanted_IO), 0, -_INNER):
        begin = max(0, end - _INNER)
        inner = slice(begin, end)
        torch.addmm(wanted_IO[inner], factor_II[end:, inner].t(), change_IO[end:], out=wanted_IO[inner])
        for column in range(end - 1, begin - 1, -1):
            later = slice(column + 1, end)
            wanted_O = wanted_IO[column].addmv_(change_IO[later].t(), factor_II[later, column])
            zeros = None if grid.zero_points is None else grid.zero_points[column]
            own = Grid(grid.scales[column], zeros, grid.bits)
            code_O = own.encode(wanted_O)
            codes_IO[column] = code_O
            torch.sub(weight_IO[column], own.decode(code_O), out=change_IO[column])


def _round_block_cuda(
    wanted_IO: Tensor, weight_IO: Tensor, grid: Grid, factor_II: Tensor, codes_IO: Tensor, change_IO: Tensor
) -> None:
    """`_round_block` as one kernel: thousands of small ones would leave the GPU idle."""
    from quantize.algorithms.gptq_kernel import round_block

    round_block(wanted_IO, weight_IO, grid, factor_II, codes_IO, change_IO)
