"""Lazy access to the safetensors of a model directory: one tensor at a time, never a whole model."""

from __future__ import annotations

import math
import mmap
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.errors import ModelError
from toolchain.model.config_json import read_json_object
from toolchain.model.families import EMBEDDING, LM_HEAD, expected_tensors, optional_tensors
from toolchain.model.safetensors_file import (
    ITEM_SIZES,
    Entry,
    Location,
    opened,
    read_bytes,
    read_header,
)
from toolchain.model.spec import ModelSpec
from toolchain.progress import Progress, Silent

if TYPE_CHECKING:
    import torch

__all__ = [
    "DESCRIPTION_FILES",
    "INDEX_FILE",
    "SINGLE_FILE",
    "TORCH_DTYPES",
    "Checkpoint",
    "Location",
    "weight_files",
]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DESCRIPTION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Where forms of quantized checkpoints, or old versions of them, describe one beside `config.json`."""

TORCH_DTYPES = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16"},
    **{"U32": "uint32", "I32": "int32", "F32": "float32"},
    **{"U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64"},
}
"""The name of the torch dtype, by safetensors dtype string."""

# Tensors that older exporters stored and no supported model reads: they follow from the config.
_HARMLESS = re.compile(
    r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)|.*\.self_attn\.(masked_bias|bias)"
)

# How transformers 5 names experts in memory.
_FUSED_EXPERTS = re.compile(r"model\.layers\.\d+\..*experts\.(gate_up_proj|down_proj)(\.weight)?")

_MAP_NORESERVE = 0x4000  # of Linux on every architecture that torch supports; `mmap` names it from 3.13 on

_CHUNK = 4 << 20  # bytes compared at a time

_SHOWN = 5  # names listed in an error before "and N more"


class Checkpoint:
    """The tensors of a model directory, by name. Opening reads headers only; reading is thread-safe."""

    def __init__(self, model_dir: Path, entries: Mapping[str, Entry]) -> None:
        self.model_dir = model_dir
        self._entries = dict(entries)
        self._maps: dict[Path, mmap.mmap] = {}
        self._maps_lock = threading.Lock()

    @classmethod
    def open(cls, model_dir: Path) -> Checkpoint:
        """Open `model.safetensors`, or the shards that `model.safetensors.index.json` names.

        Raises ModelError when there are no such weights, when the index and its shards disagree, and for
        every damaged file (see `read_header`).
        """
        files = weight_files(model_dir)
        if files[0].name == SINGLE_FILE:
            return cls(model_dir, read_header(files[0]))
        return cls(model_dir, _read_shards(model_dir / INDEX_FILE, _read_weight_map(model_dir)))

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor, file by file, in the order of the bytes."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        return tuple(dict.fromkeys(entry.location.file for entry in self._entries.values()))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of tensor `name`."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """The dtype of tensor `name`, as the safetensors string: "BF16", "F32", "U8", ..."""
        return self._entry(name).dtype

    def location(self, name: str) -> Location:
        """Where the bytes of tensor `name` lie."""
        return self._entry(name).location

    def read(self, name: str) -> torch.Tensor:
        """Tensor `name` in memory of its own, which is freed with the tensor.

        The bytes are copied out of the page cache rather than mapped, so that resident memory does not
        grow with the number of tensors that were read.
        """
        import torch

        entry = self._entry(name)
        buffer = torch.empty(entry.location.nbytes, dtype=torch.uint8)
        read_bytes(entry.location, buffer.numpy().data)
        return buffer.view(getattr(torch, TORCH_DTYPES[entry.dtype])).reshape(entry.shape)

    def view(self, name: str) -> torch.Tensor:
        """Tensor `name` as a memory map, without a copy; its pages count as resident once touched.

        Writing to it changes memory only, never the file. A file whose tensors are not aligned to their
        item size (old exporters) is copied instead.
        """
        import torch

        entry = self._entry(name)
        where, item_size = entry.location, ITEM_SIZES[entry.dtype]
        if where.nbytes == 0 or where.offset % item_size:
            return self.read(name)
        dtype = getattr(torch, TORCH_DTYPES[entry.dtype])
        count = where.nbytes // item_size
        flat = torch.frombuffer(self._map(where.file), dtype=dtype, count=count, offset=where.offset)
        return flat.reshape(entry.shape)

    def release(self) -> None:
        """Let go of the pages that views have touched, which no longer count as resident.

        Views stay usable: what they touch is read again.
        """
        with self._maps_lock:
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)

    def check_finite(self, progress: Progress | None = None) -> None:
        """Read every floating-point tensor in chunks; raise ModelError naming those that hold NaN or Inf."""
        from toolchain.model.finite import count_non_finite, is_float

        floats = [name for name in self.names if is_float(self.dtype(name))]
        progress = progress or Silent()
        progress.start("check weights", sum(self.location(name).nbytes for name in floats), "bytes")
        broken = []
        for name in floats:
            count = count_non_finite(self.dtype(name), self.location(name), progress.advance)
            if count:
                broken.append(f"{name} ({count} of {math.prod(self.shape(name))} values)")
        if broken:
            raise ModelError(
                f"{len(broken)} tensor{'s hold' if len(broken) > 1 else ' holds'} NaN or infinity",
                where=str(self.model_dir),
                why=_some(broken),
                fix="download the model again; if it is the same, ask its publisher",
            )

    def verify(
        self,
        spec: ModelSpec,
        *,
        replaced: Collection[str] = frozenset(),
        beside: Collection[str] = frozenset(),
    ) -> None:
        """Raise one ModelError listing every missing, surplus and wrongly shaped tensor of a plain model.

        A tied model may store lm_head.weight as well, but only as the very bytes of the embedding: where
        they differ, transformers 4 used the embedding and transformers 5 uses the stored head.

        Args:
            spec: the model.
            replaced: tensors of the plain model in whose place a quantized one has others.
            beside: those others.
        """
        fused = [name for name in self.names if _FUSED_EXPERTS.fullmatch(name)]
        if spec.moe is not None and fused:
            raise ModelError(
                "the experts are stored fused, all of a layer in one tensor",
                where=f"{self.model_dir}: {fused[0]}",
                why="published checkpoints store each expert's matrices by themselves, and so does "
                "save_pretrained of transformers 5",
                fix=f"split them: {_resave(self.model_dir)}",
            )
        expected, optional = expected_tensors(spec), optional_tensors(spec)
        expected = {name: shape for name, shape in expected.items() if name not in replaced}
        missing = [name for name in expected if name not in self and name not in optional]
        surplus = [
            name
            for name in self.names
            if name not in expected and name not in beside and not _HARMLESS.fullmatch(name)
        ]
        wrong = [
            f"{name} is {list(self.shape(name))}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in self and self.shape(name) != shape
        ]
        parts = [("missing", missing), ("not part of the model", surplus), ("of another shape", wrong)]
        found = [f"{len(names)} {what}: {_some(names)}" for what, names in parts if names]
        if found:
            raise ModelError(
                f"the weights are not those of the {spec.architecture} that config.json describes",
                where=str(self.model_dir),
                why="; ".join(found),
                fix="check that config.json belongs to these weights, or download the model again",
            )
        if spec.tie_word_embeddings and LM_HEAD in self and not self._same(LM_HEAD, EMBEDDING):
            raise ModelError(
                f"config.json ties {LM_HEAD} to the embedding, but the two are stored with different values",
                where=str(self.model_dir),
                fix=f"set tie_word_embeddings to false if the head is meant, or else remove {LM_HEAD}",
            )

    def _same(self, left: str, right: str) -> bool:
        """Whether two tensors are equal to the bit."""
        one, other = self._entry(left), self._entry(right)
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        for start in range(0, one.location.nbytes, _CHUNK):
            size = min(_CHUNK, one.location.nbytes - start)
            buffers = bytearray(size), bytearray(size)
            read_bytes(one.location, memoryview(buffers[0]), start)
            read_bytes(other.location, memoryview(buffers[1]), start)
            if buffers[0] != buffers[1]:
                return False
        return True

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelError(f"there is no tensor {name}", where=str(self.model_dir)) from None

    def _map(self, path: Path) -> mmap.mmap:
        with self._maps_lock:
            if path not in self._maps:
                # Private and writable, since torch warns of a read-only buffer. NORESERVE, or the kernel
                # would refuse to map a file larger than memory, counting every page as one to be copied.
                with opened(path) as descriptor:
                    self._maps[path] = mmap.mmap(
                        descriptor,
                        0,
                        flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                        prot=mmap.PROT_READ | mmap.PROT_WRITE,
                    )
            return self._maps[path]


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files that make up the model: `model.safetensors`, or the shards of the index.

    Raises ModelError when there are none, with the way to get them.
    """
    if (model_dir / SINGLE_FILE).exists():
        return [model_dir / SINGLE_FILE]
    if (model_dir / INDEX_FILE).exists():
        return [model_dir / name for name in sorted(set(_read_weight_map(model_dir).values()))]
    raise _no_weights(model_dir)


def _read_weight_map(model_dir: Path) -> dict[str, str]:
    """Tensor name -> shard file name, from the index. Every name is that of a file in `model_dir`."""
    path = model_dir / INDEX_FILE
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError("the index of the weights has no `weight_map`", where=str(path), fix=_DOWNLOAD)
    for tensor, name in weight_map.items():
        # The index is downloaded: a path in it must not reach outside the model.
        if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
            raise ModelError(
                f"the index assigns {tensor} to {name!r}, which is not a file name",
                where=str(path),
                fix=_DOWNLOAD,
            )
    absent = sorted(name for name in set(weight_map.values()) if not (model_dir / name).exists())
    if absent:
        raise ModelError(
            f"the index of the weights names {len(absent)} file{'s' * (len(absent) > 1)} that are not there",
            where=str(path),
            why=_some(absent),
            fix="download the missing files into the model's directory",
        )
    return weight_map


def _read_shards(index: Path, weight_map: Mapping[str, str]) -> dict[str, Entry]:
    """The entries of all shards. Raises ModelError where index and shards disagree, with every difference."""
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for shard in sorted(set(weight_map.values())):
        header = read_header(index.parent / shard)
        lacking = [name for name, file in weight_map.items() if file == shard and name not in header]
        if lacking:
            problems.append(f"{shard} lacks {_some(lacking)}")
        unlisted = [name for name in header if name not in weight_map]
        if unlisted:
            problems.append(f"{shard} holds {_some(unlisted)}, which the index does not list")
        twice = [name for name in header if weight_map.get(name, shard) != shard]
        if twice:
            problems.append(f"{shard} holds {_some(twice)}, which the index assigns to another file")
        entries |= header
    if problems:
        raise ModelError(
            "the index and the files of the weights disagree",
            where=str(index),
            why="; ".join(problems),
            fix="download the index and the files again, all of one revision",
        )
    return entries


def _no_weights(model_dir: Path) -> ModelError:
    if not model_dir.is_dir():
        return ModelError("there is no such model directory", where=str(model_dir))
    others = sorted(path.name for path in model_dir.glob("*.safetensors"))
    pickled = sorted(path.name for path in model_dir.glob("*.bin") if path.name.startswith("pytorch_model"))
    why, fix = "", "download the model's safetensors files into the directory"
    if others:
        why = f"there is {_some(others)}, but no index says how they belong together"
        fix = f"download {INDEX_FILE}, or rename a single complete file to {SINGLE_FILE}"
    elif pickled:
        why = f"there is {_some(pickled)}: a pickle, which can run code when it is loaded"
        fix = f"convert it: {_resave(model_dir)}"
    return ModelError(
        f"there is neither {SINGLE_FILE} nor {INDEX_FILE}", where=str(model_dir), why=why, fix=fix
    )


def _resave(model_dir: Path) -> str:
    """The command that writes the model anew, beside the directory, as transformers stores it."""
    return (
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{model_dir}', dtype='auto').save_pretrained('{model_dir}-safetensors')\""
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


_DOWNLOAD = "download the model again"
