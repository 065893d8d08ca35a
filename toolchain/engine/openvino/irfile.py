"""Writes OpenVINO's IR: the graph as .xml by OpenVINO itself, the weights as .bin by us.

OpenVINO's own writer wants every weight in memory or mapped, and copies it. Here a weight goes to its final
place when its node is made, and the node holds a placeholder: the memory needed is what one weight is made
from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
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

Chunks = Iterable[bytes]
"""The bytes of one constant in order, in pieces of a few megabytes."""


@dataclass(frozen=True)
class _Place:
    """Where a constant lies in the .bin: `nbytes` from byte `offset` on."""

    offset: int
    nbytes: int


class Constants:
    """The weights of a graph under construction, written as they are asked for.

    Args:
        file: the .bin, open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._end = file, 0
        self._nodes: dict[str, ov.Node] = {}
        self._places: dict[str, _Place] = {}
        self._zeros: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._keep: list[NDArray[np.uint8]] = []

    def get(self, name: str, element_type: ov.Type, shape: Sequence[int], chunks: Chunks) -> ov.Node:
        """The constant `name`; made and written at the first call, the same node afterwards.

        Raises:
            OSError: the disk is full.
            BuildError: `chunks` has more or fewer bytes than such a constant.
        """
        if name not in self._nodes:
            nbytes = (math.prod(shape) * element_type.bitwidth + 7) // 8
            self._places[name] = self._append(name, nbytes, chunks)
            # Untouched zeros are the kernel's one zero page: a placeholder of any size costs no memory.
            # OpenVINO borrows the array without holding it, hence `_keep`.
            if nbytes > self._zeros.nbytes:
                self._zeros = np.zeros(nbytes, np.uint8)
                self._keep.append(self._zeros)
            tensor = ov.Tensor(self._zeros[:nbytes], ov.Shape(list(shape)), element_type)
            node = ops.constant(tensor, shared_memory=True)
            node.set_friendly_name(name)
            self._nodes[name] = node
        return self._nodes[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all constants made so far."""
        return sum(self._places[name].nbytes for name in self._nodes)

    def finish(self, model: ov.Model, xml_path: Path) -> None:
        """Write what is left of `model`, whose weights came from `get`: its small constants and the graph.

        Args:
            model: the graph; nodes without a name of their own get one that does not depend on the process.
            xml_path: the graph's file.

        Raises:
            OSError: the disk is full, the directory is not writable.
            BuildError: OpenVINO's writer, which does not notice a full disk, left the graph incomplete.
        """
        _name_nodes(model)
        places = {}
        for node in model.get_ordered_ops():
            if node.get_type_name() == "Constant":
                name = node.get_friendly_name()
                if name not in self._nodes:  # an axis, a shape, a frequency
                    data = np.ascontiguousarray(node.data).tobytes()
                    self._places[name] = self._append(name, len(data), [data])
                places[name] = self._places[name]
        self._file.flush()
        # The graph alone: the placeholders that would be the .bin go nowhere.
        ov.serialize(model, str(xml_path), "/dev/null")
        xml_path.write_text(_point(xml_path.read_text(encoding="utf-8"), places), encoding="utf-8")

    def _append(self, name: str, nbytes: int, chunks: Chunks) -> _Place:
        padding = -self._end % ALIGNMENT
        self._file.write(bytes(padding))
        place = _Place(self._end + padding, nbytes)
        count = sum(self._file.write(chunk) for chunk in chunks)
        if count != nbytes:
            raise BuildError("wrong number of bytes", where=name, why=f"{nbytes} expected, {count} found")
        self._end = place.offset + nbytes
        return place


def _point(xml: str, places: dict[str, _Place]) -> str:
    """Replace the offset of every constant in `xml` by its place in our .bin."""

    def place(match: re.Match[str]) -> str:
        found = places.pop(match["name"])
        if found.nbytes != int(match["size"]):
            raise BuildError("a constant changed its size", where=match["name"])
        return f'{match["head"]}offset="{found.offset}" size="{found.nbytes}"'

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
