"""Weights of a Hugging Face checkpoint, plain or W4A16_AWQ, as nodes of an OpenVINO graph.

Only byte positions are looked up while the graph is made; the bytes follow when the IR is written. Nothing is
rounded: int4 codes and their scales are the checkpoint's own in another order, and 16-bit weights are widened
to f32 on their way into the file. Widening doubles the file and halves the memory at run time: of a 16-bit
matrix the CPU plugin makes an f32 copy in memory of its own, and keeps that beside the one that it packs for
its kernels, whereas an f32 matrix stays in the mapped file, whose pages the kernel can drop. The exception is
a bf16 embedding table, of which the plugin picks rows where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from toolchain.engine.openvino.irfile import Constants
from toolchain.errors import BuildError, ModelError
from toolchain.model.checkpoint import Checkpoint, Location
from toolchain.model.families import expected_tensors
from toolchain.model.spec import ModelSpec

CHUNK = 4 << 20
"""Bytes read at a time."""

_WIDEN: dict[str, Callable[[bytes], NDArray[Any]]] = {
    "F32": lambda data: np.frombuffer(data, np.uint8),
    "F16": lambda data: np.frombuffer(data, np.float16).astype(np.float32),
    # bf16 is the upper half of an f32.
    "BF16": lambda data: np.left_shift(np.frombuffer(data, np.uint16), 16, dtype=np.uint32),
}
"""Little-endian numbers as the bytes of f32 numbers of the same values, by safetensors' name of the dtype."""


class CheckpointWeights:
    """The `Weights` of a checkpoint; their bytes are planned into `constants`.

    Every method raises ModelError where a tensor is missing or is not of the shape that the config implies,
    and BuildError where it is of a dtype that the openvino flavour does not run.
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, constants: Constants) -> None:
        self.checkpoint, self.constants = checkpoint, constants
        self.shapes, self.tied = expected_tensors(spec), spec.tie_word_embeddings

    def vector(self, name: str) -> ov.Node:
        """A norm's gain or a bias, as f32."""
        return self._plain(name, self.shapes[name])

    def input_scale(self, module: str) -> ov.Node | None:
        """What multiplies the input [in] of a linear, as f32; None where nothing does, or only ones."""
        name = f"{module}.pre_quant_scale"
        if name not in self.checkpoint or bool((self.checkpoint.read(name) == 1).all()):
            return None
        return self._plain(name, self.shapes[f"{module}.weight"][1:])

    def matrix(self, module: str) -> ov.Node:
        """The weight [out, in] of a linear as f32, dequantized if it is quantized."""
        name = f"{module}.weight"
        if self.checkpoint.dtype(name) == "U8":
            return self._dequantized(module)
        return self._plain(name, self.shapes[name])

    def rows(self, module: str, indices: ov.Node) -> ov.Node:
        """Rows of an embedding as f32. Picked before they are widened, so that the table can stay bf16."""
        name = f"{module}.weight"
        if self.checkpoint.dtype(name) == "BF16" and not self.tied:
            chunks = partial(_file_chunks, self.checkpoint.location(name))
            self._check_shape(name, self.shapes[name])
            table = self.constants.get(name, ov.Type.bf16, self.shapes[name], chunks)
            return ops.convert(_gather_rows(table, indices), ov.Type.f32)
        return _gather_rows(self._plain(name, self.shapes[name]), indices)

    def _plain(self, name: str, expected: tuple[int, ...], axes_after: tuple[int, ...] = ()) -> ov.Node:
        """An unquantized tensor of shape `expected`, widened to f32, with `axes_after` appended to it."""
        dtype = self.checkpoint.dtype(name)
        if dtype not in _WIDEN:
            raise BuildError(
                f"cannot run a tensor of dtype {dtype}",
                where=name,
                why=f"the openvino flavour reads {', '.join(_WIDEN)} and packed int4 (W4A16_AWQ)",
                fix="quantize with method awq, gptq, awq_gptq or none",
            )
        self._check_shape(name, expected)
        chunks = partial(_wide_chunks, self.checkpoint.location(name), dtype)
        return self.constants.get(name, ov.Type.f32, expected + axes_after, chunks)

    def _check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        found = self.checkpoint.shape(name)
        if found != expected:
            raise ModelError(
                f"a tensor has the shape {list(found)}",
                where=name,
                why=f"config.json implies {list(expected)}",
                fix="check that config.json belongs to these weights, or quantize the model again",
            )

    def _dequantized(self, module: str) -> ov.Node:
        """codes * scale as [out, in]. The plugin recognises the expression and keeps the codes in memory."""
        name, scale_name = f"{module}.weight", f"{module}.weight_scale"
        rows, columns = self.shapes[name]
        self._check_shape(name, (rows // 2, columns))
        groups = max(1, math.prod(self.checkpoint.shape(scale_name)) // rows)
        scale_OG1 = self._plain(scale_name, (rows, groups), axes_after=(1,))
        if columns % (2 * groups):
            raise ModelError(
                f"{groups} scales a row do not divide {columns} columns into even groups", where=scale_name
            )
        codes_OGI = self.constants.get(
            name,
            ov.Type.i4,
            (rows, groups, columns // groups),
            partial(_code_chunks, self.checkpoint.location(name), columns),
        )
        weight_OGI = ops.multiply(ops.convert(codes_OGI, ov.Type.f32), scale_OG1)
        return ops.reshape(weight_OGI, ops.constant(np.array([rows, columns])), special_zero=False)


def repack_rows(packed_PI: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Int4 codes from ModelOpt's order to OpenVINO's.

    Args:
        packed_PI: uint8 [out / 2, in]; row p holds output row 2p in the low and 2p + 1 in the high nibble.

    Returns:
        uint8 [out, in / 2]; column c holds input column 2c in the low and 2c + 1 in the high nibble.
    """
    even_PC, odd_PC = packed_PI[:, 0::2], packed_PI[:, 1::2]
    repacked_P2C = np.empty((packed_PI.shape[0], 2, packed_PI.shape[1] // 2), np.uint8)
    repacked_P2C[:, 0] = (even_PC & 0x0F) | (odd_PC << 4)
    repacked_P2C[:, 1] = (even_PC >> 4) | (odd_PC & 0xF0)
    return repacked_P2C.reshape(-1, packed_PI.shape[1] // 2)


def _gather_rows(table: ov.Node, indices: ov.Node) -> ov.Node:
    return ops.gather(table, indices, ops.constant(np.int64(0)))


def _file_chunks(location: Location, size: int = CHUNK) -> Iterator[bytes]:
    """The bytes at `location`, in pieces of at most `size`."""
    with location.file.open("rb") as file:
        file.seek(location.offset)
        left = location.nbytes
        while left and (chunk := file.read(min(size, left))):
            left -= len(chunk)
            yield chunk


def _code_chunks(location: Location, columns: int) -> Iterator[bytes]:
    """Packed codes at `location`, repacked for OpenVINO, some whole rows at a time."""
    for chunk in _file_chunks(location, max(1, CHUNK // columns) * columns):
        yield repack_rows(np.frombuffer(chunk, np.uint8).reshape(-1, columns)).tobytes()


def _wide_chunks(location: Location, dtype: str) -> Iterator[bytes]:
    """The numbers at `location` as f32."""
    for chunk in _file_chunks(location):
        yield _WIDEN[dtype](chunk).tobytes()
