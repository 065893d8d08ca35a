"""Every quantization method, by the name that a recipe calls it."""

from __future__ import annotations

import difflib

from quantize.methods.awq import Awq
from quantize.methods.base import Method
from quantize.methods.fp8 import Fp8, Fp8Rowwise
from quantize.methods.gptq import AwqGptq, Gptq
from quantize.methods.nvfp4 import Nvfp4
from quantize.methods.smoothquant import SmoothQuant
from quantize.methods.w4a8 import W4A8Awq
from quantize.methods.weight_only import Int4WeightOnly, Int8WeightOnly
from toolchain.errors import QuantizeError

METHODS = (
    "none",
    "awq",
    "gptq",
    "awq_gptq",
    "fp8",
    "fp8_rowwise",
    "int8_sq",
    "int8_wo",
    "int4_wo",
    "w4a8_awq",
    "nvfp4",
)


def make_method(
    name: str,
    *,
    group_size: int = 128,
    symmetric: bool = True,
    clip: bool = True,
    act_order: bool = True,
    damp: float = 0.01,
    alpha: float | None = None,
) -> Method | None:
    """The method that a recipe calls `name`; None for "none".

    Each method takes those of the options that it reads, and ignores the others.

    Args:
        name: one of `METHODS`.
        group_size: input channels that share a scale, of the 4-bit integer methods.
        symmetric: whether 4-bit codes are signed; else they have zero points.
        clip: whether awq, gptq, awq_gptq and w4a8_awq search the range of each group.
        act_order: whether gptq and awq_gptq round the columns of the largest inputs first.
        damp: how much gptq and awq_gptq add to the diagonal of the Gram matrix.
        alpha: how much of the activations' range int8_sq moves into the weights; None to search it.

    Raises:
        QuantizeError: there is no such method.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        raise QuantizeError(
            f"there is no method {name!r}",
            where="quantization.method",
            fix=f"did you mean {near[0]}?" if near else f"use one of {', '.join(METHODS)}",
        )
    rounding = Gptq(group_size, clip, act_order, damp, symmetric)
    methods: dict[str, Method] = {
        "awq": Awq(group_size, clip, symmetric),
        "gptq": rounding,
        "awq_gptq": AwqGptq(rounding),
        "fp8": Fp8(),
        "fp8_rowwise": Fp8Rowwise(),
        "int8_sq": SmoothQuant(alpha=alpha),
        "int8_wo": Int8WeightOnly(),
        "int4_wo": Int4WeightOnly(group_size, symmetric),
        "w4a8_awq": W4A8Awq(Awq(group_size, clip)),
        "nvfp4": Nvfp4(),
    }
    return methods.get(name)
