"""What quantizers remember of a linear's inputs, so that none of them needs the inputs again.

With G = X^T X, the output error of a changed weight, || (W' - W) X^T ||^2, is a trace over G. GPTQ needs all
of G; two cheap stand-ins cover what AWQ asks: a random sketch of X for the error as a whole, and the
blocks of G on its diagonal for the error that arises within one group of channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.integer import in_groups

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
        return self._sum / self.tokens

    def update(self, x_TI: Tensor) -> None:
        """Take in rows x [tokens, in] of any float dtype."""
        x_TI = x_TI.float()
        tokens = x_TI.shape[0]
        self._sum += x_TI.abs().sum(dim=0)
        x_GTI = in_groups(x_TI, self.group_size).transpose(0, 1)
        self.blocks.baddbmm_(x_GTI.transpose(1, 2), x_GTI)
        sign_T = torch.randint(2, (tokens,), generator=self._random).mul_(2).sub_(1)
        signed_TI = x_TI * sign_T.to(x_TI.device).unsqueeze(1)
        # Sums over whole rounds of 512 rows, which every device adds in the same order from run to run.
        before = self.tokens % _SKETCH_ROWS
        after = -(before + tokens) % _SKETCH_ROWS
        if before or after:
            signed_TI = F.pad(signed_TI, (0, 0, before, after))
        self.sketch += signed_TI.view(-1, _SKETCH_ROWS, x_TI.shape[1]).sum(dim=0)
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
        # The GPU multiplies 16-bit numbers into float32 sums; a product of two of them is exact there.
        narrow = x_TI.is_cuda and x_TI.dtype != torch.float32
        x_TI = x_TI if narrow else x_TI.float()
        for columns in self._columns:
            upper = self._gram[columns, columns.start :]
            left, right = x_TI[:, columns].t(), x_TI[:, columns.start :]
            if narrow:
                upper += torch.mm(left, right, out_dtype=torch.float32)
            else:
                upper.addmm_(left, right)
