"""What quantizers remember of a linear's inputs, so that none of them needs the inputs again.

With G = X^T X, the output error of a changed weight, || (W' - W) X^T ||^2, is a trace over G. GPTQ needs all
of G; two cheap stand-ins cover what AWQ asks: a random sketch of X for the error as a whole, and the
blocks of G on its diagonal for the error that arises within one group of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantize.integer import in_groups

# Rows of the sketch. Against the full Gram matrix 64 rows cost a tenth of AWQ's gain, 512 nothing measurable.
_SKETCH_ROWS = 512
CPU = torch.device("cpu")


class InputStatistics:
    """Accumulates statistics of the inputs x [tokens, in] of one group of linears.

    Attributes:
        tokens: rows seen.
        sketch: float32 [512, in]. Each row of x is added, with a random sign, to one random row
            (a count sketch), so E[sketch^T sketch] = X^T X.
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
        return self._sum / self.tokens

    def update(self, x_TI: Tensor) -> None:
        """Take in rows x [tokens, in] of any float dtype."""
        x_TI = x_TI.to(torch.float32, copy=True)
        tokens = x_TI.shape[0]
        self.tokens += tokens
        self._sum += x_TI.abs().sum(dim=0)
        x_GTI = in_groups(x_TI, self.group_size).transpose(0, 1)
        self.blocks.baddbmm_(x_GTI.transpose(1, 2), x_GTI)
        row_T = torch.randint(_SKETCH_ROWS, (tokens,), generator=self._random)
        sign_T = torch.randint(2, (tokens,), generator=self._random).mul_(2).sub_(1)
        row_T, sign_T = row_T.to(x_TI.device), sign_T.to(x_TI.device)
        self.sketch.index_add_(0, row_T, x_TI.mul_(sign_T.unsqueeze(1)))


class GramStatistics:
    """What `InputStatistics` remembers, and the whole of G = X^T X: what GPTQ asks.

    Attributes:
        inputs: the cheap statistics.
        gram: float32 [in, in].
    """

    def __init__(self, in_features: int, group_size: int, seed: int, device: torch.device = CPU) -> None:
        self.inputs = InputStatistics(in_features, group_size, seed, device)
        self.gram = torch.zeros(in_features, in_features, device=device)

    def update(self, x_TI: Tensor) -> None:
        """Take in rows x [tokens, in] of any float dtype."""
        self.inputs.update(x_TI)
        x_TI = x_TI.float()
        self.gram.addmm_(x_TI.t(), x_TI)
