"""Int4 codes as bytes, the way TensorRT-LLM stores them: two neighbouring output rows share a byte."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_int4_rows(codes_OI: Tensor) -> Tensor:
    """Pack signed codes, int8 [out, in] in -8..7, into uint8 [out / 2, in].

    Row p of the result holds row 2p in the low and row 2p + 1 in the high nibble, in two's complement.

    Raises:
        ValueError: an odd number of rows, another dtype, or a code that does not fit in four bits.
    """
    if codes_OI.dtype != torch.int8 or codes_OI.dim() != 2:
        raise ValueError(f"codes must be int8 [out, in], not {codes_OI.dtype} {tuple(codes_OI.shape)}")
    if codes_OI.shape[0] % 2:
        raise ValueError(f"{codes_OI.shape[0]} output rows cannot be packed in pairs")
    if codes_OI.numel() and (codes_OI.min() < -8 or codes_OI.max() > 7):
        raise ValueError("a code lies outside -8..7")
    nibbles_OI = codes_OI.view(torch.uint8) & 15
    return nibbles_OI[0::2] | (nibbles_OI[1::2] << 4)


def unpack_int4_rows(packed_PI: Tensor) -> Tensor:
    """The inverse of `pack_int4_rows`: uint8 (or int8) [out / 2, in] to int8 [out, in] in -8..7."""
    pairs_PI = packed_PI.view(torch.int8)
    low_PI = (pairs_PI << 4) >> 4  # int8 shifts are arithmetic, so the nibble's sign is extended
    return torch.stack((low_PI, pairs_PI >> 4), dim=1).reshape(-1, packed_PI.shape[1])
