"""Writes OpenVINO's IR: the graph as .xml by OpenVINO itself, the weights as .bin by us.

OpenVINO's own writer wants every weight in memory or mapped, and copies it. Here weights are placeholders
while the graph is made, and their bytes are streamed to their final place once: the memory needed is one
buffer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from toolchain.errors import BuildError

ALIGNMENT = 64
"""Bytes; every constant starts at a multiple, so that the memory-mapped file can be used in place."""

_CONSTANT = re.compile(
    r'(?P<head>name="(?P<name>[^"]+)" type="Const"[^>]*>\s*<data element_type="\w+" shape="[\d, ]*" )'
    r'offset="\d+" size="(?P<size>\d+)"'
)

Chunks = Callable[[], Iterator[bytes]]
"""Yields the bytes of one constant in order, in pieces of a few megabytes."""


@dataclass(frozen=True)
class _Planned:
    node: ov.Node
    nbytes: int
    chunks: Chunks


class Constants:
    """The weights of a graph under construction: their nodes now, their bytes when the file is written."""

    def __init__(self) -> None:
        self._planned: dict[str, _Planned] = {}
        self._zeros: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._keep: list[NDArray[np.uint8]] = []

    def get(self, name: str, element_type: ov.Type, shape: tuple[int, ...], chunks: Chunks) -> ov.Node:
        """The constant `name`; made at the first call, the same node afterwards."""
        if name not in self._planned:
            nbytes = (int(np.prod(shape)) * element_type.bitwidth + 7) // 8
            # Untouched zeros are the kernel's one zero page: a placeholder of any size costs no memory.
            # OpenVINO borrows the array without holding it, hence `_keep`.
            if nbytes > self._zeros.nbytes:
                self._zeros = np.zeros(nbytes, np.uint8)
                self._keep.append(self._zeros)
            tensor = ov.Tensor(self._zeros[:nbytes], ov.Shape(shape), element_type)
            node = ops.constant(tensor, shared_memory=True)
            node.set_friendly_name(name)
            self._planned[name] = _Planned(node, nbytes, chunks)
        return self._planned[name].node

    @property
    def nbytes(self) -> int:
        """Bytes of all constants made so far."""
        return sum(planned.nbytes for planned in self._planned.values())

    def write(self, model: ov.Model, xml_path: Path, bin_path: Path, written: Callable[[int], None]) -> None:
        """Write `model`, whose weights came from `get`, as an IR.

        Args:
            model: the graph; nodes without a name of their own get one that does not depend on the process.
            xml_path: the graph's file.
            bin_path: the weights' file.
            written: told the number of bytes of each constant of `get` when it is written.

        Raises:
            OSError: the disk is full, the directory is not writable.
            BuildError: a source of bytes yields more or fewer than its constant has; OpenVINO's writer, which
                does not notice a full disk, left the graph incomplete.
        """
        _name_nodes(model)
        places: dict[str, tuple[int, int]] = {}
        with bin_path.open("wb") as file:
            for node in model.get_ordered_ops():
                if node.get_type_name() != "Constant":
                    continue
                name = node.get_friendly_name()
                planned = self._planned.get(name) or _inline(node)
                file.write(bytes(-file.tell() % ALIGNMENT))
                places[name] = (file.tell(), planned.nbytes)
                _stream(name, planned, file)
                if name in self._planned:
                    written(planned.nbytes)
        # The graph alone: the placeholders that would be the .bin go nowhere.
        ov.serialize(model, str(xml_path), "/dev/null")
        xml_path.write_text(_point(xml_path.read_text(encoding="utf-8"), places), encoding="utf-8")


def _inline(node: ov.Node) -> _Planned:
    """A constant that the graph itself holds: an axis, a shape, a frequency."""
    data = np.ascontiguousarray(node.data).tobytes()
    return _Planned(node, len(data), lambda: iter([data]))


def _stream(name: str, planned: _Planned, file: BinaryIO) -> None:
    count = 0
    for chunk in planned.chunks():
        count += file.write(chunk)
    if count != planned.nbytes:
        raise BuildError("wrong number of bytes", where=name, why=f"{planned.nbytes} expected, {count} found")


def _point(xml: str, places: dict[str, tuple[int, int]]) -> str:
    """Replace the offset of every constant in `xml` by its place in our .bin."""

    def place(match: re.Match[str]) -> str:
        offset, nbytes = places.pop(match["name"])
        if nbytes != int(match["size"]):
            raise BuildError("a constant changed its size", where=match["name"])
        return f'{match["head"]}offset="{offset}" size="{nbytes}"'

    pointed = _CONSTANT.sub(place, xml)
    if places or not xml.rstrip().endswith("</net>"):
        missing = f"without {', '.join(sorted(places)[:3])}" if places else "it ends too early"
        raise BuildError(
            "OpenVINO wrote an incomplete graph", why=missing, fix="see that the disk is not full"
        )
    return pointed


def _name_nodes(model: ov.Model) -> None:
    """Renumber the nodes that OpenVINO named: it counts everything that the process has built so far."""
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}.{index}")
