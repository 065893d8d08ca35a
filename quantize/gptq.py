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

from quantize.integer import grid_codes
from toolchain.errors import QuantizeError

# Columns that are rounded one by one before their effect on all others is computed in one product.
_BLOCK = 128
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
        order_I = energy_I.argsort(stable=True) if act_order else torch.arange(len(energy_I) - 1, -1, -1)
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


def round_with_feedback(weight_OI: Tensor, scales_OG: Tensor, feedback: Feedback, *, bits: int = 4) -> Tensor:
    """Choose codes on a given grid such that the errors of columns make up for each other.

    The scales belong to groups of columns in their stored order, whatever the order of rounding: no index
    of groups has to be stored.

    Args:
        weight_OI: [out, in].
        scales_OG: float32 [out, in / group_size].
        feedback: of the same inputs.
        bits: width of a code.

    Returns:
        codes int8 [out, in].
    """
    group_size = weight_OI.shape[1] // scales_OG.shape[1]
    order_I, factor_II = feedback.order, feedback.factor
    # Columns as rows, so that each is contiguous.
    weight_IO = weight_OI.float().t()[order_I]
    scales_GO = scales_OG.t().contiguous()
    groups = (order_I // group_size).tolist()
    codes_IO = torch.empty(weight_IO.shape, dtype=torch.int8)
    change_IO = torch.empty_like(weight_IO)  # E = W - Q, of the columns that have been rounded
    for end in range(len(groups), 0, -_BLOCK):
        begin = max(0, end - _BLOCK)
        wanted_IO = torch.addmm(weight_IO[begin:end], factor_II[end:, begin:end].t(), change_IO[end:])
        for column in range(end - 1, begin - 1, -1):
            later = slice(column + 1, end)
            wanted_O = wanted_IO[column - begin].addmv_(change_IO[later].t(), factor_II[later, column])
            scale_O = scales_GO[groups[column]]
            code_O = grid_codes(wanted_O, scale_O, bits)
            codes_IO[column] = code_O
            torch.addcmul(weight_IO[column], code_O, scale_O, value=-1, out=change_IO[column])
    codes_OI = torch.empty(weight_OI.shape, dtype=torch.int8)
    codes_OI[:, order_I] = codes_IO.t()
    return codes_OI
