"""What quantizers remember of a linear's inputs, so that none of them needs the inputs again.

With G = X^T X, the output error of a changed weight, || (W' - W) X^T ||^2, is a trace over G. GPTQ needs all
of G; two cheap stand-ins cover what AWQ asks: a random sketch of X for the error as a whole, and the
blocks of G on its diagonal for the error that arises within one group of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantize.algorithms.integer import divided, in_groups

# Rows of the sketch. Against the full Gram matrix 64 rows cost a tenth of AWQ's gain, 512 nothing measurable.
_SKETCH_ROWS = 512
# G is symmetric: of this many block columns, only the blocks on and above the diagonal are computed.
_GRAM_BLOCKS = 4
CPU = torch.device("cpu")


class InputStatistics:
    """Accumulates statistics of the inputs x [tokens, in] of one group of linears.

    Attributes:
        tokens: rows seen.
        sketch: float32 [512, in]. Row t of x is added, with a random sign, to row t mod 512, so that
            E[sketch^T sketch] = X^T X.
        blocks: float32 [in / group_size, group_size, group_size], the diagonal blocks of X^T X.
        magnitude: float32 [in], the mean of |x|.
    """

    def __init__(self, in_features: int, group_size: int, seed: int, device: torch.device = CPU) -> None:
        self.tokens = 0
        self.group_size = group_size
        self.sketch = torch.zeros(_SKETCH_ROWS, in_features, device=device)
        self.blocks = torch.zeros(in_features // group_size, group_size, group_size, device=device)
        self._sum = torch.zeros(in_features, device=device)
        # Of the CPU whatever the device, so that every device draws the same.
        self._random = torch.Generator().manual_seed(seed)

    @property
    def magnitude(self) -> Tensor:
        """float32 [in]: the mean of |x| of each channel. NaN or Inf where any input was."""
        return divided(self._sum, self.tokens)

    def update(self, x_TI: Tensor) -> None:
        """Take in rows x [tokens, in] of any float dtype."""
        x_TI = _operand(x_TI)
        tokens = x_TI.shape[0]
        self._sum += x_TI.abs().sum(dim=0, dtype=torch.float32)
        x_GTI = in_groups(x_TI, self.group_size).transpose(0, 1)
        _add_product(self.blocks, x_GTI.transpose(1, 2), x_GTI)
        sign_T = torch.randint(2, (tokens,), generator=self._random).mul_(2).sub_(1).to(x_TI)
        row_T = torch.arange(self.tokens, self.tokens + tokens, device=x_TI.device) % _SKETCH_ROWS
        if x_TI.is_cuda:
            # A product, since a GPU adds scattered rows in another order every time.
            signs_ST = x_TI.new_zeros(_SKETCH_ROWS, tokens).scatter_(0, row_T[None], sign_T[None])
            _add_product(self.sketch, signs_ST, x_TI)
        else:
            self.sketch.index_add_(0, row_T, x_TI * sign_T.unsqueeze(1))
        self.tokens += tokens


class GramStatistics:
    """What `InputStatistics` remembers, and the whole of G = X^T X: what GPTQ asks.

    Attributes:
        inputs: the cheap statistics.
    """

    def __init__(self, in_features: int, group_size: int, seed: int, device: torch.device = CPU) -> None:
        self.inputs = InputStatistics(in_features, group_size, seed, device)
        self._gram = torch.zeros(in_features, in_features, device=device)
        step = -(-in_features // _GRAM_BLOCKS)
        self._columns = [
            slice(at, min(at + step, in_features)) for at in range(0, in_features, step)
        ]  # of the blocks

    @property
    def gram(self) -> Tensor:
        """float32 [in, in]."""
        for number, rows in enumerate(self._columns):
            for columns in self._columns[number + 1 :]:
                self._gram[columns, rows] = self._gram[rows, columns].t()
        return self._gram

    def update(self, x_TI: Tensor) -> None:
        """Take in rows x [tokens, in] of any float dtype."""
        self.inputs.update(x_TI)
        x_TI = _operand(x_TI)
        for columns in self._columns:
            upper = self._gram[columns, columns.start :]
            _add_product(upper, x_TI[:, columns].t(), x_TI[:, columns.start :])


def _operand(x: Tensor) -> Tensor:
    """Inputs as they enter products: on a GPU 16-bit numbers, whose products are exact; else float32."""
    return x if x.is_cuda and x.dtype != torch.float32 else x.float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, with float32 sums; matrices or batches of them."""
    if left.dtype == torch.float32:
        (total.addmm_ if total.dim() == 2 else total.baddbmm_)(left, right)
    else:
        multiply = torch.mm if total.dim() == 2 else torch.bmm
        total += multiply(left, right, out_dtype=torch.float32)
