"""GPTQ's inner loop on a GPU, as a Triton kernel: a block of columns, each output row by itself.

Needs triton, which comes with every CUDA build of torch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from quantize.algorithms.integer import Grid

# Output rows of one program: with 128 columns, 32 registers a thread.
_ROWS = 32


def round_block(
    wanted_IO: Tensor, weight_IO: Tensor, grid: Grid, factor_II: Tensor, codes_IO: Tensor, change_IO: Tensor
) -> None:
    """Round a block of columns from the last to the first; fill in codes and change.

    Args:
        wanted_IO: float32 [block, out], what the columns should become.
        weight_IO: float32 [block, out], what they are.
        grid: [block, out].
        factor_II: float32 [block, block], lower triangular with ones on the diagonal.
        codes_IO: int8 or uint8 [block, out], written.
        change_IO: float32 [block, out], written: weight less what the codes stand for.
    """
    columns, rows = wanted_IO.shape
    signed = grid.zero_points is None
    top = 2 ** (grid.bits - 1) - 1 if signed else 2**grid.bits - 1
    tensors = wanted_IO.contiguous(), weight_IO.contiguous(), grid.scales.contiguous()
    zeros = tensors[2] if grid.zero_points is None else grid.zero_points.contiguous()
    _kernel[(triton.cdiv(rows, _ROWS),)](
        *tensors,
        zeros,
        factor_II.contiguous(),
        codes_IO,
        change_IO,
        rows,
        columns,
        -top - 1 if signed else 0,
        top,
        SIGNED=signed,
        BLOCK=triton.next_power_of_2(columns),
        ROWS=_ROWS,
    )


# Without types: triton reads annotations as code.
@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    wanted,
    weight,
    scales,
    zeros,
    factor,
    codes,
    change,
    rows,
    columns,
    low,
    high,
    SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here_R = row_R < rows
    column_B = tl.arange(0, BLOCK)
    tile = column_B[:, None] * rows + row_R[None, :]
    inside = (column_B[:, None] < columns) & here_R[None, :]
    wanted_BR = tl.load(wanted + tile, mask=inside, other=0.0)
    for step in range(columns):
        column = columns - 1 - step
        wanted_R = tl.sum(tl.where(column_B[:, None] == column, wanted_BR, 0.0), axis=0)
        at_R = column * rows + row_R
        scale_R = tl.load(scales + at_R, mask=here_R, other=1.0)
        code_R = tl.extra.cuda.libdevice.rint(wanted_R / scale_R)
        if SIGNED:
            code_R = tl.minimum(tl.maximum(code_R, low), high)
            value_R = code_R * scale_R
        else:
            zero_R = tl.load(zeros + at_R, mask=here_R, other=0.0)
            code_R = tl.minimum(tl.maximum(code_R + zero_R, low), high)
            value_R = (code_R - zero_R) * scale_R
        change_R = tl.load(weight + at_R, mask=here_R, other=0.0) - value_R
        tl.store(codes + at_R, code_R.to(codes.dtype.element_ty), mask=here_R)
        tl.store(change + at_R, change_R, mask=here_R)
        factor_B = tl.load(factor + column * columns + column_B, mask=column_B < column, other=0.0)
        wanted_BR += factor_B[:, None] * change_R[None, :]
