"""One safetensors file: its header, checked against the file's length, and the bytes of its tensors.

Format: https://github.com/huggingface/safetensors (8 bytes little-endian header length, a JSON header,
then the tensors' bytes without gaps).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import ModelError
from toolchain.model.config_json import LFS_POINTER, lfs_pointer_error

ITEM_SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4},
    **{"U64": 8, "I64": 8, "F64": 8, "C64": 8},
}
"""Bytes of one element, by safetensors dtype string."""

_HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library itself


@dataclass(frozen=True)
class Location:
    """Where a tensor's bytes lie: `nbytes` bytes from `offset` (counted from the file's start) in `file`."""

    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Entry:
    """One stored tensor: its dtype (safetensors string), its shape and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    location: Location


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises ModelError for a file that cannot be read, a Git LFS pointer, a corrupt header, a tensor named
    twice, and a file that is shorter or longer than its header says.
    """
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        prefix = os.pread(descriptor, len(LFS_POINTER), 0)
        if prefix == LFS_POINTER:
            raise lfs_pointer_error(path)
        length = int.from_bytes(prefix[:8], "little")
        if len(prefix) < 8 or (length <= _HEADER_LIMIT and 8 + length > size):
            raise _truncated(path, f"its {size} bytes do not hold even the header")
        if length > _HEADER_LIMIT:
            raise _corrupt(path, f"a header of {length} bytes is beyond the format's limit")
        header = os.pread(descriptor, length, 8)

    entries = _parse(path, header)
    end = 8 + length
    for name, entry in entries.items():
        if entry.location.offset != end:
            raise _corrupt(path, f"{name} begins at byte {entry.location.offset}, where {end} was expected")
        end += entry.location.nbytes
    if size < end:
        raise _truncated(path, f"its header describes {end} bytes, the file has {size}")
    if size > end:
        raise _corrupt(path, f"its header describes {end} bytes, the file has {size}")
    return entries


def read_bytes(location: Location, target: memoryview, start: int = 0) -> None:
    """Fill `target` with the bytes of the tensor at `location`, from its byte `start` on."""
    offset = location.offset + start
    with opened(location.file) as descriptor:
        while target:
            count = os.preadv(descriptor, [target], offset)  # one call moves at most 2 GiB
            if count == 0:
                raise ModelError(
                    "the weights file became shorter while it was read", where=str(location.file)
                )
            target, offset = target[count:], offset + count


def prefetch(locations: Iterable[Location]) -> None:
    """Ask the kernel to read tensors into its page cache, without waiting and without memory of ours."""
    for location in locations:
        with opened(location.file) as descriptor:
            os.posix_fadvise(descriptor, location.offset, location.nbytes, os.POSIX_FADV_WILLNEED)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A read-only file descriptor of `path`. An OSError, also one within the block, becomes a ModelError."""
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        yield descriptor
    except OSError as error:
        raise ModelError(f"cannot read the weights: {error.strerror}", where=str(path)) from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _parse(path: Path, header: bytes) -> dict[str, Entry]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ModelError(f"the tensor {twice} is stored twice", where=str(path), fix=_DOWNLOAD)
        return found

    try:
        described = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not JSON ({error})") from None
    if not isinstance(described, dict):
        raise _corrupt(path, "its header is not a JSON object")
    described.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + len(header)) for name, value in described.items()}
    return dict(sorted(entries.items(), key=lambda item: _position(item[1])))


def _position(entry: Entry) -> tuple[int, int]:
    return entry.location.offset, entry.location.nbytes


def _entry(path: Path, name: str, value: Any, base: int) -> Entry:
    described = value if isinstance(value, dict) else {}
    dtype, shape = described.get("dtype"), _naturals(described.get("shape"))
    offsets = _naturals(described.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise _corrupt(path, f"the entry of {name} has no proper shape and data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise ModelError(
            f"the tensor {name} has the unknown dtype {dtype!r}",
            where=str(path),
            why=f"known dtypes are {', '.join(ITEM_SIZES)}",
        )
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_SIZES[dtype]:
        raise _corrupt(path, f"{name} has {end - begin} bytes, which is not {dtype} of shape {list(shape)}")
    return Entry(dtype, shape, Location(path, base + begin, end - begin))


def _naturals(value: Any) -> tuple[int, ...] | None:
    """A JSON list of non-negative integers as a tuple; None for anything else."""
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return tuple(value)
    return None


_DOWNLOAD = "download the file again"


def _truncated(path: Path, why: str) -> ModelError:
    return ModelError("the weights file is truncated", where=str(path), why=why, fix=_DOWNLOAD)


def _corrupt(path: Path, why: str) -> ModelError:
    return ModelError("the weights file is corrupt", where=str(path), why=why, fix=_DOWNLOAD)
