"""One decoder layer's linears, cut and written: every rank gets its part."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from quantize.linear import QuantizedLinear
from toolchain.engine.tensorrt.convert.contents import SHARED_BY_EXPERTS, Contents
from toolchain.engine.tensorrt.convert.encode import BIAS, PRE_QUANT, cut, encode, kinds
from toolchain.engine.tensorrt.convert.files import RankFiles
from toolchain.engine.tensorrt.convert.modules import Block, Module
from toolchain.errors import BuildError
from toolchain.model.checkpoint import TORCH_DTYPES
from toolchain.model.families import layer_prefix


class LayerWriter:
    """Writes the linears of one layer, block by block.

    Args:
        contents: what every rank has of them.
        files: where it goes.
        layer: the layer's number in the model.
        path: what its tensors are named with in the files.
        ranks: the ranks that share the layer, and the file of each.

    Attributes:
        largest: by name, what a stack of experts has once; known when all are written.
    """

    def __init__(
        self, contents: Contents, files: RankFiles, layer: int, path: str, ranks: Mapping[int, int]
    ) -> None:
        self.contents, self.files = contents, files
        self.layer, self.path, self.ranks = layer, path, ranks
        self.dtype: torch.dtype = getattr(torch, TORCH_DTYPES[contents.dtype])
        self.largest: dict[str, Tensor] = {}
        self._pre_quant: dict[tuple[str, int], Tensor] = {}

    def write(
        self,
        part: Block,
        linears: Mapping[str, QuantizedLinear | Tensor],
        biases: Mapping[str, Tensor],
    ) -> None:
        """Write the parts that all ranks have of a block, whose linears `unify` has seen."""
        for module in part.modules:
            for rank in self.ranks:
                slot = self._slot(part, rank)
                if slot is not None:
                    self._write(part, module, linears, biases, rank, slot)

    def _slot(self, part: Block, rank: int) -> int | None:
        """The place of a block in a rank's stack of experts; None where the rank has no part of it."""
        moe = self.contents.spec.moe
        if part.expert is None or moe is None:
            return 0
        own = self.contents.layout.experts(moe.num_experts, rank)
        return part.expert - own.start if part.expert in own else None

    def _write(
        self,
        part: Block,
        module: Module,
        linears: Mapping[str, QuantizedLinear | Tensor],
        biases: Mapping[str, Tensor],
        rank: int,
        slot: int,
    ) -> None:
        """A rank's part of a module: rows of its members one after the other, and what they share once."""
        own = self.contents.scheme.modules[self.layer].get(module.name)
        columns = self.contents.columns(self.layer, part, module, rank)
        by_rows = {BIAS, *(name for name, kind in kinds(own, 0, 0).items() if kind.by_rows)}
        at: dict[str, int] = {}
        for member in module.members:
            rows = self.contents.rows(self.layer, part, module, member, rank)
            tensors = encode(own, cut(linears[member], rows, columns), self.dtype)
            if member in biases:
                tensors[BIAS] = biases[member][rows]
            for name, values in tensors.items():
                full = f"{module.name}.{name}"
                if part.expert is not None and name in SHARED_BY_EXPERTS:
                    self.largest[full] = torch.maximum(values, self.largest.get(full, values))
                elif name in by_rows or member == module.members[0]:
                    if part.expert is not None and name == PRE_QUANT:
                        self._check_shared(full, rank, values, member)
                    start = at[name] if name in at else slot * self._size_of_one(part, rank, full)
                    count = self.files.write(self.ranks[rank], self.path + full, values, start)
                    at[name] = start + count

    def _check_shared(self, name: str, rank: int, values: Tensor, member: str) -> None:
        """TensorRT-LLM takes the first expert's pre-quant scale for all, without a look at the others."""
        if not torch.equal(self._pre_quant.setdefault((name, rank), values), values):
            raise BuildError(
                "the experts have a pre_quant_scale each",
                where=layer_prefix(self.layer) + member,
                why="an engine multiplies the input of all of them by the first one's",
                fix="quantize the model again with llmbuild, which gives them one",
            )

    def _size_of_one(self, part: Block, rank: int, name: str) -> int:
        """Elements that an expert has of a stacked tensor; 0 where nothing is stacked."""
        if part.expert is None:
            return 0
        return math.prod(self.files.layouts[self.ranks[rank]][self.path + name].shape[1:])
