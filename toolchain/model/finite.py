"""Counting NaN and infinity in stored tensors, without converting them.

In every IEEE-like format the bits below the sign order the magnitudes, and everything from one pattern on
is infinite or NaN. One integer maximum a chunk therefore decides, and it runs at memory speed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from toolchain.model.safetensors_file import Location, read_bytes

# safetensors dtype -> (integer of that width, bits of the magnitude, first magnitude that is not finite)
_BITS: dict[str, tuple[torch.dtype, int, int]] = {
    "F8_E4M3": (torch.uint8, 0x7F, 0x7F),  # the "fn" variant: no infinity, one NaN
    "F8_E5M2": (torch.uint8, 0x7F, 0x7C),
    "F16": (torch.int16, 0x7FFF, 0x7C00),
    "BF16": (torch.int16, 0x7FFF, 0x7F80),
    "F32": (torch.int32, 0x7FFF_FFFF, 0x7F80_0000),
    "C64": (torch.int32, 0x7FFF_FFFF, 0x7F80_0000),
    "F64": (torch.int64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}

_CHUNK = 4 << 20  # bytes; stays within the processor's cache between the two passes


def is_float(dtype: str) -> bool:
    """Whether a safetensors dtype can hold NaN."""
    return dtype in _BITS


def count_non_finite(dtype: str, location: Location, advance: Callable[[int], None]) -> int:
    """How many numbers of a stored tensor are NaN or infinite. `advance` is told the bytes of each chunk."""
    integer, magnitude, first = _BITS[dtype]
    buffer = torch.empty(min(_CHUNK, location.nbytes), dtype=torch.uint8)
    count = 0
    for start in range(0, location.nbytes, _CHUNK):
        chunk = buffer[: min(_CHUNK, location.nbytes - start)]
        read_bytes(location, chunk.numpy().data, start)
        bits = chunk.view(integer).bitwise_and_(magnitude)
        if int(bits.max()) >= first:
            count += int((bits >= first).sum())
        advance(len(chunk))
    return count
