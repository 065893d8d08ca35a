"""What methods that quantize activations remember of a linear's inputs: their range, and some of them.

A static scale needs the largest magnitude that was seen. What rounding inputs and weights together does to
the output is measured on tokens drawn at random: unlike weights, inputs are rounded token by token, which
sums over tokens (statistics.py) do not show.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quantize.algorithms.integer import sampled_rows
from quantize.linear import QuantizedLinear
from quantize.methods.statistics import CPU
from quantize.simulate import input_rounding

# On the demo model, 256 to 2048 tokens lead SmoothQuant to the same alphas, give or take a step.
_SAMPLED_TOKENS = 512
_JUDGED_ROWS = 1024


class ActivationStatistics:
    """Accumulates statistics of the inputs x [tokens, in] of one group of linears.

    Attributes:
        amax: float32 [in], the largest |x| of each channel.
        sample: float32 [at most 512, in], tokens drawn without replacement, all equally likely.
    """

    def __init__(self, in_features: int, seed: int, device: torch.device = CPU) -> None:
        self.amax = torch.zeros(in_features, device=device)
        self.sample = torch.zeros(0, in_features, device=device)
        # Each token draws a number, and those with the smallest stay. Of the CPU whatever the device, so that
        # every device draws the same.
        self._draws = torch.zeros(0)
        self._random = torch.Generator().manual_seed(seed)

    def update(self, x_TI: Tensor) -> None:
        """Take in rows x [tokens, in] of any float dtype."""
        self.amax = torch.maximum(self.amax, x_TI.abs().amax(dim=0).float())
        before = len(self._draws)
        draws = torch.cat((self._draws, torch.rand(x_TI.shape[0], generator=self._random)))
        kept = draws.argsort(stable=True)[:_SAMPLED_TOKENS].sort().values
        old, new = kept[kept < before], kept[kept >= before] - before
        self._draws = draws[kept]
        self.sample = torch.cat((self.sample[old.to(x_TI.device)], x_TI[new.to(x_TI.device)].float()))


def output_errors(
    weights: Mapping[str, Tensor], linears: Mapping[str, QuantizedLinear], quant_algo: str, sample_TI: Tensor
) -> dict[str, dict[str, float]]:
    """What quantization does to each linear's output, relative to the output, on sampled inputs.

    Of linears with many outputs, a sample of the outputs is judged.

    Args:
        weights: name -> [out, in], as it was.
        linears: the same names.
        quant_algo: decides how the linears' kernels round their input.
        sample_TI: float32, inputs.

    Returns:
        name -> `relative_error`, and `relative_error_of_weight`, which it were if inputs stayed exact.
    """
    found = {}
    for name, weight_OI in weights.items():
        rounding = input_rounding(linears[name], quant_algo)
        rounded_OI = linears[name].sampled(_JUDGED_ROWS).dequantize()
        output_TO = sample_TI @ sampled_rows(weight_OI, _JUDGED_ROWS).float().t()
        by_weight_TO = sample_TI @ rounded_OI.t()
        by_both_TO = by_weight_TO if rounding is None else rounding(sample_TI) @ rounded_OI.t()
        found[name] = {
            "relative_error": relative(by_both_TO.sub_(output_TO), output_TO),
            "relative_error_of_weight": relative(by_weight_TO.sub_(output_TO), output_TO),
        }
    return found


def weight_errors(
    weights: Mapping[str, Tensor], linears: Mapping[str, QuantizedLinear]
) -> dict[str, dict[str, float]]:
    """name -> `relative_error` of each weight: that of the output, were inputs white."""
    return {
        name: {"relative_error": relative(linears[name].dequantize() - weight_OI.float(), weight_OI.float())}
        for name, weight_OI in weights.items()
    }


def relative(change: Tensor, whole: Tensor) -> float:
    """|| change || / || whole ||, to six digits; 0 where the whole is 0."""
    total = float(whole.norm())
    return float(f"{float(change.norm()) / total:.6g}") if total else 0.0
