"""4-bit codes as bytes.

Int4 the way TensorRT-LLM stores it: two neighbouring output rows share a byte. Fp4 (E2M1) the way ModelOpt
and compressed-tensors store it: two neighbouring input channels do.
"""

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


# The magnitudes of E2M1, by their three low bits; the fourth is the sign.
_FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def pack_fp4(codes_OI: Tensor) -> Tensor:
    """Pack E2M1 values, float8_e4m3fn [out, in], into uint8 [out, in / 2], even channels in the low nibble.

    Raises:
        ValueError: an odd number of channels, another dtype, or a value that E2M1 does not have.
    """
    if codes_OI.dtype != torch.float8_e4m3fn or codes_OI.dim() != 2 or codes_OI.shape[1] % 2:
        raise ValueError(
            f"codes must be float8_e4m3fn [out, in], in even, not {codes_OI.dtype} {tuple(codes_OI.shape)}"
        )
    table_M = torch.tensor(_FP4_MAGNITUDES, device=codes_OI.device)
    magnitudes_OI = codes_OI.float().abs()
    indices_OI = torch.bucketize(magnitudes_OI, table_M).clamp_(max=7)
    if not torch.equal(table_M[indices_OI], magnitudes_OI):
        raise ValueError("a code is not a value of E2M1")
    sign_OI = (codes_OI.view(torch.uint8) >> 4) & 8
    nibbles_OI = indices_OI.to(torch.uint8) | sign_OI
    return nibbles_OI[:, 0::2] | (nibbles_OI[:, 1::2] << 4)


def unpack_fp4(packed_OP: Tensor) -> Tensor:
    """The inverse of `pack_fp4`: uint8 [out, in / 2] to float8_e4m3fn [out, in]."""
    table_C = torch.tensor(_FP4_MAGNITUDES + tuple(-value for value in _FP4_MAGNITUDES))
    # float8 cannot be indexed everywhere; its bytes can.
    bytes_C = table_C.to(torch.float8_e4m3fn).view(torch.uint8).to(packed_OP.device)
    nibbles_OP2 = torch.stack((packed_OP & 15, packed_OP >> 4), dim=2)
    return bytes_C[nibbles_OP2.int()].flatten(1).view(torch.float8_e4m3fn)
