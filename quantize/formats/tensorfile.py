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
class TensorType:
    """What a file's header says of a tensor: its safetensors dtype and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class StoredTensor(TensorType):
    """A tensor to be written: what it is, and its bytes in memory or in another file."""

    data: Tensor | Location

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """A tensor in memory."""
        return cls(dtype_name(tensor.dtype), tuple(tensor.shape), tensor)


def dtype_name(dtype: torch.dtype) -> str:
    """The name that safetensors files have for `dtype`."""
    return _DTYPES[dtype]


def lay_out(
    tensors: Mapping[str, TensorType], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a safetensors file, its header included, and where in the file each tensor begins.

    The format allows no gaps, so alignment comes from order and padding: the header is padded, tensors
    whose size is a multiple of 64 bytes come first in the order given, then the others, widest items first.
    """
    order = sorted(tensors, key=lambda name: _placement(tensors[name]))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offsets, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offsets[name], offset = offset, end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-(len(encoded) + 8) % ALIGNMENT)
    start = len(encoded).to_bytes(8, "little") + encoded
    return start, {name: len(start) + offset for name, offset in offsets.items()}


def write_tensor_file(
    path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that appears under its name only when it is whole and on the disk.

    Raises:
        StoreError: the file system refused.
        ModelError: a tensor's source file shrank or vanished.
    """
    start, offsets = lay_out(tensors, metadata)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(start)
            for name in offsets:
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


def _placement(tensor: TensorType) -> tuple[bool, int]:
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
