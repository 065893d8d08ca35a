"""The walk from a checkpoint to rank files: one pass over the source, one linear of a layer in memory.

A step is the embedding, a decoder layer, or the norm and the output layer; after a kill the walk goes on at
the first step that is not on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantize.formats.base import INT8_WO
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.formats.tensorfile import write_text_file
from quantize.linear import QuantizedLinear
from toolchain.engine.tensorrt.convert.config import CONFIG_FILE, QUANT_FILE, quant_config, rank_config
from toolchain.engine.tensorrt.convert.contents import (
    KV_PARTS,
    KV_SCALES,
    LM_HEAD,
    LN_F,
    VOCAB_EMBEDDING,
    Contents,
    layer_path,
)
from toolchain.engine.tensorrt.convert.encode import check_values, regrouped, unify
from toolchain.engine.tensorrt.convert.files import RankFiles
from toolchain.engine.tensorrt.convert.layer import LayerWriter
from toolchain.engine.tensorrt.convert.layout import RankLayout
from toolchain.engine.tensorrt.convert.modules import (
    PLAIN_TENSORS,
    QK_NORMS,
    Block,
    layer_blocks,
    router_modules,
)
from toolchain.engine.tensorrt.convert.scheme import engine_scheme, with_kv_cache
from toolchain.engine.tensorrt.convert.slices import block, vocabulary_rows
from toolchain.errors import BuildError
from toolchain.model import families
from toolchain.model.checkpoint import TORCH_DTYPES
from toolchain.model.config_json import read_json_object
from toolchain.model.families import has_bias, layer_prefix
from toolchain.model.spec import load_spec
from toolchain.progress import Progress

# Raise it when the same checkpoint and layout come out as other bytes: files begun before begin again.
_STATE_VERSION = 1
_PAD_ROWS = 1024


def convert(
    checkpoint: Path,
    out_dir: Path,
    work_dir: Path,
    *,
    layout: RankLayout,
    progress: Progress,
    kv_cache: str | None = None,
) -> dict[str, Any]:
    """Write the rank checkpoint of `checkpoint` to `out_dir`, for `trtllm-build`.

    The files are the same whenever and however often it was interrupted. `config.json` comes last, so a
    directory that has one is whole.

    Args:
        checkpoint: a Hugging Face directory, plain or quantized in any form that is known here.
        out_dir: made if need be.
        work_dir: keeps what was written before an interruption, for this conversion alone; on the file
            system of `out_dir`. The caller deletes it.
        layout: how the model is cut.
        progress: told the bytes that were written.
        kv_cache: "FP8" for an FP8 KV cache with scales of 1 where the checkpoint has none.

    Returns:
        facts: quant_algo, dtype, ranks, and bytes of all tensors.

    Raises:
        PlanError: the model cannot be cut this way.
        BuildError: TensorRT-LLM's engines have no place for what the checkpoint holds; all that can be known
            is found before anything is written.
        ModelError: the checkpoint is damaged or of an unknown form.
        StoreError: the file system refuses.
    """
    spec, source = load_spec(checkpoint), QuantizedCheckpoint.open(checkpoint)
    layout.check(spec)
    scheme = engine_scheme(spec, with_kv_cache(source.scheme, kv_cache), layout)
    source.verify(spec)
    stored = source.checkpoint.dtype(families.EMBEDDING)
    contents = Contents(spec, layout, scheme, stored)
    config = rank_config(
        spec, read_json_object(checkpoint / "config.json"), layout, scheme, TORCH_DTYPES[stored]
    )
    described = quant_config(scheme, layout)
    fingerprint = {
        "version": _STATE_VERSION,
        "config": config,
        "source": {
            file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in source.checkpoint.files
        },
    }
    with RankFiles(work_dir, contents.ranks(), fingerprint) as files:
        walk = _Walk(source, contents, files)
        walk.run(progress)
        files.publish(out_dir)
        total = files.nbytes
    write_text_file(out_dir / QUANT_FILE, json.dumps(described, indent=2) + "\n")
    write_text_file(out_dir / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    return {
        "quant_algo": scheme.quant_algo,
        "dtype": config["dtype"],
        "ranks": layout.world_size,
        "bytes": total,
    }


class _Walk:
    """One conversion: the checkpoint, what is to come of it, and the files that it goes into."""

    def __init__(self, source: QuantizedCheckpoint, contents: Contents, files: RankFiles) -> None:
        self.source, self.contents, self.files = source, contents, files
        self.spec, self.layout = contents.spec, contents.layout
        self.dtype: torch.dtype = getattr(torch, TORCH_DTYPES[contents.dtype])
        self.stages = self.layout.stages(self.spec.num_hidden_layers)
        self.rounded: list[str] = []

    def run(self, progress: Progress) -> None:
        """Write everything that is not written yet."""
        steps = list(self._steps())
        sizes = [self._bytes(names) for names, _ in steps]
        progress.start("convert", sum(sizes), "bytes", done=sum(sizes[: self.files.done]))
        for (names, write), size in list(zip(steps, sizes, strict=True))[self.files.done :]:
            write()
            self.files.finish_step(names)
            self.source.checkpoint.release()
            progress.advance(size)
        if any(own.quant_algo == INT8_WO for own in self.contents.scheme.distinct):
            progress.note(
                "the int8 weights are stored as the numbers that they stand for: trtllm-build rounds them to "
                "int8 again, with scales of its own"
            )
        if self.rounded:
            progress.note(
                f"{len(self.rounded)} linears were rounded to fp8 once more: what reads one input has one "
                "scale in an engine"
            )

    def _steps(self) -> Iterator[tuple[dict[int, list[str]], Callable[[], None]]]:
        """What each step writes, by rank, and the function that does."""
        tensor, last = range(self.layout.tensor), len(self.stages) - 1
        yield {self.layout.file(rank, 0): list(self.contents.embedding()) for rank in tensor}, self._embedding
        for number, layers in enumerate(self.stages):
            for layer in layers:
                prefix = layer_path(layer - layers.start)
                names = {
                    self.layout.file(rank, number): [
                        prefix + name for name in self.contents.layer(layer, rank)
                    ]
                    for rank in tensor
                }
                yield names, lambda layer=layer, number=number: self._layer(layer, number)  # type: ignore[misc]
        yield {self.layout.file(rank, last): list(self.contents.head()) for rank in tensor}, self._head

    def _bytes(self, names: Mapping[int, list[str]]) -> int:
        return sum(self.files.layouts[rank][name].nbytes for rank, own in names.items() for name in own)

    def _plain(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A stored tensor in the model's dtype, or another."""
        stored, wanted = self.source.checkpoint.view(name), dtype or self.dtype
        values = stored.to(wanted)
        if values.dtype != stored.dtype and not bool(values.isfinite().all()):
            raise BuildError(
                f"the tensor has values beyond {str(wanted).removeprefix('torch.')}",
                where=name,
                fix="convert a checkpoint that is stored in one dtype",
            )
        return values

    def _embedding(self) -> None:
        table_VH = self._plain(families.EMBEDDING)
        for rank in range(self.layout.tensor):
            file = self.layout.file(rank, 0)
            if self.layout.use_parallel_embedding and self.layout.embedding_sharding_dim == 0:
                self._vocabulary(file, VOCAB_EMBEDDING, table_VH, rank)
            elif self.layout.use_parallel_embedding:
                own = block(self.spec.hidden_size, self.layout.tensor, rank)
                self.files.write(file, VOCAB_EMBEDDING, table_VH[:, own])
            else:
                self.files.write(file, VOCAB_EMBEDDING, table_VH)

    def _head(self) -> None:
        checkpoint, last = self.source.checkpoint, len(self.stages) - 1
        name = families.LM_HEAD if families.LM_HEAD in checkpoint else families.EMBEDDING
        norm_H, head_VH = self._plain(families.FINAL_NORM), self._plain(name)
        for rank in range(self.layout.tensor):
            self.files.write(self.layout.file(rank, last), LN_F, norm_H)
            self._vocabulary(self.layout.file(rank, last), LM_HEAD, head_VH, rank)

    def _vocabulary(self, file: int, name: str, table_VH: Tensor, rank: int) -> None:
        """A rank's tokens of a table, and the zeros that its last rows may be."""
        own = vocabulary_rows(self.spec.vocab_size, self.layout.tensor, rank)
        done = self.files.write(file, name, table_VH[own])
        rows, columns = self.files.layouts[file][name].shape
        zeros = torch.zeros(rows * columns - done, dtype=self.dtype)
        self.files.write(file, name, zeros, done)

    def _layer(self, layer: int, stage: int) -> None:
        prefix, path = layer_prefix(layer), layer_path(layer - self.stages[stage].start)
        ranks = {rank: self.layout.file(rank, stage) for rank in range(self.layout.tensor)}
        whole = {
            own: self._plain(prefix + name)
            for own, name in (PLAIN_TENSORS | (QK_NORMS if self.spec.qk_norm else {})).items()
        }
        for own, name in router_modules(self.spec, layer).items():
            dtype = torch.float32 if own == "mlp.router" else None
            whole[f"{own}.weight"] = self._plain(f"{prefix}{name}.weight", dtype)
        whole |= self._kv_scales(prefix)
        writer = LayerWriter(self.contents, self.files, layer, path, ranks)
        for part in layer_blocks(self.spec, layer):
            linears = self._read(layer, part)
            writer.write(part, linears, self._biases(layer, linears))
        for name, values in (whole | writer.largest).items():
            for file in ranks.values():
                self.files.write(file, path + name, values)

    def _kv_scales(self, prefix: str) -> dict[str, Tensor]:
        if self.contents.scheme.kv_cache_quant_algo is None:
            return {}
        scales = self.source.kv_scales(prefix)
        if self.source.kv_cache_quant_algo is None:
            scales = torch.ones(()), torch.ones(())
        if scales is None:
            raise BuildError("the layer has no scales of the KV cache", where=prefix.removesuffix("."))
        parts = [scale.float().view(1) for scale in scales]
        for scale in parts:
            if not (bool(scale.isfinite()) and bool(scale > 0)):
                raise BuildError(
                    "a scale of the KV cache is not a number above zero",
                    where=prefix.removesuffix("."),
                    fix="quantize the model again",
                )
        return {KV_SCALES[0]: torch.maximum(*parts), **dict(zip(KV_PARTS, parts, strict=True))}

    def _read(self, layer: int, part: Block) -> dict[str, QuantizedLinear | Tensor]:
        """The linears of a block, ready to be cut."""
        prefix = layer_prefix(layer)
        own = self.contents.scheme.modules[layer].get(part.modules[0].name)
        if own is None:
            return {name: self._plain(f"{prefix}{name}.weight") for name in part.members}
        linears: dict[str, QuantizedLinear] = {}
        for name in part.members:
            linear = self.source.linear(prefix + name)
            assert isinstance(linear, QuantizedLinear)
            check_values(own.quant_algo, linear, self.dtype, prefix + name)
            linears[name] = linear if own.group_size is None else regrouped(linear, own.group_size)
        fused = [module.members for module in part.modules]
        unified, rounded = unify(own.quant_algo, linears, fused, prefix)
        if rounded:
            self.rounded += [prefix + name for name in part.members]
        return dict(unified)

    def _biases(self, layer: int, linears: Mapping[str, QuantizedLinear | Tensor]) -> dict[str, Tensor]:
        """The biases of the linears that have one. AutoGPTQ stores one of zeros where the model has none."""
        found = {}
        for name, linear in linears.items():
            full = layer_prefix(layer) + name
            stored = linear.bias if isinstance(linear, QuantizedLinear) else None
            if has_bias(self.spec, name):
                found[name] = self._plain(f"{full}.bias") if stored is None else stored.to(self.dtype)
            elif stored is not None and bool(stored.any()):
                raise BuildError(
                    "the linear has a bias, which the model does not have",
                    where=full,
                    fix="check that config.json belongs to these weights",
                )
        return found
