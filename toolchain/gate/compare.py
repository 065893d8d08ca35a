"""Next-token distributions of two models, compared over windows of text.

Shapes: W windows of S tokens; T tokens of one chunk; H hidden_size; V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain.gate.streamed import Head
from toolchain.gate.text import Windows

# exp of more than this is beyond a double; a perplexity there means that the model is broken anyway.
_LARGEST_LOG = 700.0


def compare(windows: Windows, number: int, hidden: tuple[Tensor, Tensor], heads: tuple[Head, Head]) -> Tensor:
    """Sums over a window's predictions, float64 [5]: both cross entropies, KL, agreements, predictions.

    Logits exist for a few tokens at a time.

    Args:
        windows, number: the text, and which window of it.
        hidden: what leaves each model's last layer, [S, H]; the first model's is the reference.
        heads: of each model.
    """
    first = windows.first_predicted(number)
    tokens_S = windows.tokens[number]
    sums = torch.zeros(5, dtype=torch.float64)
    for rows in heads[0].chunks(first - 1, len(tokens_S) - 1):
        logs = [head.log_probs(states_SH[rows]) for states_SH, head in zip(hidden, heads, strict=True)]
        targets_T = tokens_S[rows.start + 1 : rows.stop + 1].to(logs[0].device)
        sums += _compare(logs[0], logs[1], targets_T).cpu()
    return sums


def _compare(source_TV: Tensor, other_TV: Tensor, targets_T: Tensor) -> Tensor:
    """The sums of `compare` for a chunk of log probabilities."""
    agreements = (source_TV.argmax(-1) == other_TV.argmax(-1)).sum()
    entropies = [
        F.nll_loss(logs_TV, targets_T, reduction="none").sum(dtype=torch.float64)
        for logs_TV in (source_TV, other_TV)
    ]
    divergence = (source_TV.exp() * (source_TV - other_TV)).sum(dtype=torch.float64)
    count = torch.full((), len(targets_T), dtype=torch.float64, device=source_TV.device)
    return torch.stack([*entropies, divergence, agreements.double(), count])


@dataclass(frozen=True)
class Sums:
    """The rows of `compare`, one a window, and what follows from them.

    Args:
        table: float64 [W, 5].
    """

    table: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> Sums:
        """From the rows of all windows."""
        return cls(torch.stack(list(rows)))

    @property
    def tokens(self) -> int:
        """Predictions in all windows."""
        return int(self.table[:, 4].sum())

    def mean(self, column: int) -> float:
        """Per prediction."""
        return (self.table[:, column].sum() / self.table[:, 4].sum()).item()

    @property
    def perplexities(self) -> tuple[float, float]:
        """exp of the mean cross entropy, of either model."""
        return _exp(self.mean(0)), _exp(self.mean(1))

    @property
    def increase(self) -> float:
        """The second perplexity over the first, less 1."""
        return _exp(self.mean(1) - self.mean(0)) - 1

    @property
    def increase_error(self) -> float | None:
        """Standard error of `increase`, from the windows' paired differences; None for one window."""
        slope = self._standard_error(self.table[:, 1] - self.table[:, 0])
        return None if slope is None else (1 + self.increase) * slope

    @property
    def kl(self) -> float:
        """Mean KL divergence of the second model's next token from the first's, nats."""
        return self.mean(2)

    @property
    def kl_error(self) -> float | None:
        """Standard error of `kl`; None for one window."""
        return self._standard_error(self.table[:, 2])

    @property
    def top1(self) -> float:
        """Share of the predictions at which the likeliest token is the same."""
        return self.mean(3)

    @property
    def top1_error(self) -> float | None:
        """Standard error of `top1`; None for one window."""
        return self._standard_error(self.table[:, 3])

    def _standard_error(self, sums_W: Tensor) -> float | None:
        """Of the mean sum(sums) / sum(counts), as a ratio estimator over windows."""
        counts_W = self.table[:, 4]
        count = len(sums_W)
        if count < 2:
            return None
        residuals_W = sums_W - counts_W * (sums_W.sum() / counts_W.sum())
        variance = residuals_W.square().sum().item() * count / (count - 1)
        return math.sqrt(variance) / counts_W.sum().item()


def _exp(value: float) -> float:
    return math.exp(min(value, _LARGEST_LOG))
