"""Codes as bytes and words.

Int4 the way TensorRT-LLM stores it: two neighbouring output rows share a byte. Fp4 (E2M1) the way ModelOpt
and compressed-tensors store it: two neighbouring input channels do. Unsigned codes the way GPTQ, AutoAWQ and
compressed-tensors store them: 32 bits of neighbours share an int32, the first in the lowest bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    if codes_OI.numel():
        least, largest = codes_OI.aminmax()
        if least < -8 or largest > 7:
            raise ValueError("a code lies outside -8..7")
    bytes_OI = codes_OI.view(torch.uint8)
    return (bytes_OI[1::2] << 4).bitwise_or_(bytes_OI[0::2] & 15)


def unpack_int4_rows(packed_PI: Tensor) -> Tensor:
    """The inverse of `pack_int4_rows`: uint8 (or int8) [out / 2, in] to int8 [out, in] in -8..7."""
    pairs_PI = packed_PI.view(torch.int8)
    codes_OI = pairs_PI.new_empty(2 * packed_PI.shape[0], packed_PI.shape[1])
    codes_OI[0::2] = (pairs_PI << 4) >> 4  # int8 shifts are arithmetic, so the nibble's sign is extended
    codes_OI[1::2] = pairs_PI >> 4
    return codes_OI


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


def as_bytes(tensor: Tensor) -> Tensor:
    """A tensor's memory in row-major order: uint8 [bytes]; shared where the tensor lies so already."""
    # A dimension of one counts as contiguous whatever its stride, and a view of other sizes minds the stride.
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def word_count(codes: int, bits: int) -> int:
    """How many int32 a row of `codes` codes takes."""
    return -(-codes * bits // 32)


def pack_words(codes_RN: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes, uint8 [rows, n] below 2^bits, into int32 [rows, ceil(n * bits / 32)].

    Args:
        codes_RN: the codes; neighbours in a row share words, a last word that is not full ends in zeros.
        bits: 4 or 8.
    """
    codes_RN = F.pad(codes_RN, (0, -codes_RN.shape[1] % (32 // bits)))
    if bits == 4:
        codes_RN = codes_RN[:, 0::2] | (codes_RN[:, 1::2] << 4)
    return as_bytes(codes_RN).view(torch.int32).view(codes_RN.shape[0], -1)


def unpack_words(words_RW: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_words`: int32 [rows, words] to uint8 [rows, words * 32 / bits], padding too."""
    bytes_RB = as_bytes(words_RW).view(words_RW.shape[0], -1)
    if bits == 8:
        return bytes_RB
    return torch.stack((bytes_RB & 15, bytes_RB >> 4), dim=2).flatten(1)
