"""Writing safetensors files: atomically, streamed, with every tensor aligned for zero-copy readers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from quantize.formats.packing import as_bytes
from toolchain.errors import ModelError, os_error
from toolchain.model.safetensors_file import ITEM_SIZES, Location

ALIGNMENT = 64
"""Bytes: a cache line, and what OpenVINO and oneDNN want of memory that they use in place."""

_COPY_BYTES = 8 << 20

_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written: its safetensors dtype, shape, and its bytes in memory or in another file."""

    dtype: str
    shape: tuple[int, ...]
    data: Tensor | Location

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """A tensor in memory."""
        return cls(_DTYPES[tensor.dtype], tuple(tensor.shape), tensor)

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


def write_tensor_file(
    path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that appears under its name only when it is whole and on the disk.

    The format allows no gaps, so alignment comes from order and padding: the header is padded, tensors
    whose size is a multiple of 64 bytes come first in the order given, then the others, widest items first.

    Raises:
        StoreError: the file system refused.
        ModelError: a tensor's source file shrank or vanished.
    """
    order = sorted(tensors, key=lambda name: _placement(tensors[name]))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-(len(encoded) + 8) % ALIGNMENT)

    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for name in order:
                _write_data(file, name, tensors[name].data)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)
    except OSError as error:
        raise os_error(error, f"write {path.name}") from error


def write_text_file(path: Path, text: str) -> None:
    """Write a small UTF-8 file that appears under its name only when it is whole. Raises StoreError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)
    except OSError as error:
        raise os_error(error, f"write {path.name}") from error


def publish(partial: Path, path: Path) -> None:
    """Rename a finished file into place, and make the rename itself durable."""
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _placement(tensor: StoredTensor) -> tuple[bool, int]:
    odd = tensor.nbytes % ALIGNMENT != 0
    return odd, -ITEM_SIZES[tensor.dtype] if odd else 0


def _write_data(file: IO[bytes], name: str, data: Tensor | Location) -> None:
    if isinstance(data, Tensor):
        if data.numel():
            file.write(as_bytes(data.detach()).numpy().data)
        return
    left = data.nbytes
    with data.file.open("rb", buffering=0) as source:
        source.seek(data.offset)
        while left:
            chunk = source.read(min(left, _COPY_BYTES))
            if not chunk:
                raise ModelError(
                    f"the weights file ended within {name}",
                    where=str(data.file),
                    why="it became shorter while it was read",
                    fix="restore the file and run the same command again",
                )
            file.write(chunk)
            left -= len(chunk)
