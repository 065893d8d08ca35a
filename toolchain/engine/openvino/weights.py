"""Weights of a Hugging Face checkpoint, plain or quantized in any form, as nodes of an OpenVINO graph.

A weight is read, and its bytes written, when its node is asked for: one linear is in memory at a time.
Nothing is rounded. Codes and their scales are the checkpoint's own in another order (see `codes`), and 16-bit
weights are widened to f32 on their way into the file, fp8 weights are dequantized. Widening enlarges the file
and halves the memory at run time: of a narrow floating-point matrix the CPU plugin makes an f32 copy in
memory of its own, and keeps that beside the one that it packs for its kernels, whereas an f32 matrix stays in
the mapped file, whose pages the kernel can drop. The exception is a bf16 embedding table, of which the plugin
picks rows where they lie.

Activations are never quantized here: the scales that a checkpoint has for them (FP8, INT8, W4A8) are what
GPU kernels need, and the CPU computes with the activations themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from toolchain.engine.openvino import heap
from toolchain.engine.openvino.irfile import Chunks, Constants
from toolchain.engine.openvino.linears import product, quantized_product, stored
from toolchain.errors import ModelError
from toolchain.model.checkpoint import Location
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
    """The `Weights` of a checkpoint; their bytes go into `constants`.

    Args:
        source: the checkpoint, verified.
        spec: what its config says.
        constants: where the bytes go.
        read: told the bytes of stored tensors that are done with.
    """

    def __init__(
        self, source: QuantizedCheckpoint, spec: ModelSpec, constants: Constants, read: Callable[[int], None]
    ) -> None:
        self.source, self.checkpoint, self.constants = source, source.checkpoint, constants
        self.tied = spec.tie_word_embeddings
        self._read = read
        self._stored: dict[str, int] = {}
        for name in self.checkpoint.names:
            module = name.rpartition(".")[0]
            self._stored[module] = self._stored.get(module, 0) + self.checkpoint.location(name).nbytes

    @property
    def stored_bytes(self) -> int:
        """What `read` is told in all, if everything is asked for."""
        return sum(self._stored.values())

    def vector(self, name: str) -> ov.Node:
        """A norm's gain or a bias, as f32."""
        return self._plain(name)

    def linear(self, module: str, hidden: ov.Node, bias: bool) -> ov.Node:
        """`hidden` [.., in] times the transpose of the weight [out, in], plus its bias if it has one."""
        if module not in self.source.scheme.linears:
            found = product(hidden, self._plain(f"{module}.weight"))
            return ops.add(found, self.vector(f"{module}.bias")) if bias else found
        heap.give_back()  # what was read and made for the linear before
        linear = self.source.linear(module)
        assert isinstance(linear, QuantizedLinear)
        found = quantized_product(self.constants, module, linear, hidden)
        self._done(module)
        if bias and linear.bias is None:
            raise ModelError(
                "a linear has no bias",
                where=module,
                why="config.json implies one",
                fix="check that config.json belongs to these weights, or quantize the model again",
            )
        # Some writers store a bias of zeros with every linear.
        if linear.bias is None or not (bias or bool(linear.bias.any())):
            return found
        return ops.add(found, stored(self.constants, f"{module}.bias", linear.bias))

    def rows(self, module: str, indices: ov.Node) -> ov.Node:
        """Rows of an embedding as f32. Picked before they are widened, so that the table can stay bf16."""
        name = f"{module}.weight"
        if self.checkpoint.dtype(name) == "BF16" and not self.tied:
            chunks = _file_chunks(self.checkpoint.location(name))
            table = self.constants.get(name, ov.Type.bf16, self.checkpoint.shape(name), chunks)
            self._done(module)
            return ops.convert(_gather(table, indices, 0), ov.Type.f32)
        return _gather(self._plain(name), indices, 0)

    def _plain(self, name: str) -> ov.Node:
        """An unquantized tensor, widened to f32."""
        widen = _WIDEN[self.checkpoint.dtype(name)]
        chunks = (widen(chunk).tobytes() for chunk in _file_chunks(self.checkpoint.location(name)))
        node = self.constants.get(name, ov.Type.f32, self.checkpoint.shape(name), chunks)
        self._done(name.rpartition(".")[0])
        return node

    def _done(self, module: str) -> None:
        self._read(self._stored.pop(module, 0))


def _gather(data: ov.Node, indices: ov.Node, axis: int) -> ov.Node:
    return ops.gather(data, indices, ops.constant(np.int64(axis)))


def _file_chunks(location: Location, size: int = CHUNK) -> Chunks:
    """The bytes at `location`, in pieces of at most `size`."""
    with location.file.open("rb") as file:
        file.seek(location.offset)
        left = location.nbytes
        while left and (chunk := file.read(min(size, left))):
            left -= len(chunk)
            yield chunk
