"""ModelOpt's unified Hugging Face form: the checkpoint that every flavour starts from.

A plain checkpoint whose quantized linears hold codes and scales in place of the weight, described by
`hf_quant_config.json` and by `quantization_config` in `config.json`. What nvidia-modelopt 0.47 writes for
W4A16_AWQ is what is written here; TensorRT-LLM's PyTorch backend reads it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from quantize.formats.packing import pack_int4_rows, unpack_int4_rows
from quantize.formats.tensorfile import StoredTensor, write_tensor_file, write_text_file
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError, os_error
from toolchain.model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from toolchain.model.config_json import read_json_object

W4A16_AWQ = "W4A16_AWQ"
QUANT_CONFIG_FILE = "hf_quant_config.json"
SHARD_BYTES = 5_000_000_000

# Loaders recognise the form by this name; the version is that of the form's writer that is followed here.
_PRODUCER = {"name": "modelopt", "version": "0.47.0"}

# Everything of a source directory, besides config and weights, that a server of the model needs.
_COMPANIONS = (
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.tiktoken", "spiece.model", "chat_template*", "LICENSE*", "USE_POLICY*"),
)


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint is quantized.

    Args:
        quant_algo: ModelOpt's name, e.g. "W4A16_AWQ".
        group_size: consecutive input channels that share a scale.
        exclude_modules: full names of modules that stay as they were.
    """

    quant_algo: str
    group_size: int
    exclude_modules: tuple[str, ...]


def linear_tensors(module: str, linear: QuantizedLinear) -> dict[str, Tensor]:
    """The stored tensors of a W4A16_AWQ linear, by full name.

    weight uint8 [out / 2, in], weight_scale float32 [out, in / group_size], and pre_quant_scale [in] and
    bias [out] where it has them.
    """
    tensors = {
        f"{module}.weight": pack_int4_rows(linear.codes),
        f"{module}.weight_scale": linear.scales,
    }
    if linear.pre_quant_scale is not None:
        tensors[f"{module}.pre_quant_scale"] = linear.pre_quant_scale
    if linear.bias is not None:
        tensors[f"{module}.bias"] = linear.bias
    return tensors


def write_checkpoint(
    source_dir: Path,
    out_dir: Path,
    tensors: Mapping[str, StoredTensor],
    scheme: Scheme | None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint directory: weights, configuration, tokenizer.

    Weights are copied from where they lie, piece by piece. They are never links to the source: an edit of
    the source must not reach into the output. `config.json` comes last, so a directory that has one is
    whole.

    Args:
        source_dir: the model that configuration and tokenizer come from.
        out_dir: made if need be.
        tensors: everything to store, in the order in which it should lie in the files.
        scheme: None for a plain checkpoint.
        shard_bytes: the size above which the weights are split into several files.

    Raises:
        StoreError: the file system refuses.
    """
    config = read_json_object(source_dir / "config.json")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for pattern in _COMPANIONS:
            for file in sorted(source_dir.glob(pattern)):
                if file.is_file():
                    shutil.copyfile(file, out_dir / file.name)
    except OSError as error:
        raise os_error(error, "copy the tokenizer and its companions") from error
    _write_weights(out_dir, tensors, shard_bytes)
    if scheme is not None:
        _write_json(out_dir / QUANT_CONFIG_FILE, _quant_config(scheme))
        config["quantization_config"] = {
            "ignore": list(scheme.exclude_modules),
            "quant_algo": scheme.quant_algo,
            "producer": _PRODUCER,
            "quant_method": "modelopt",
        }
    _write_json(out_dir / "config.json", config)


class QuantizedCheckpoint:
    """A checkpoint directory, plain or in ModelOpt's unified form, linear by linear.

    Attributes:
        checkpoint: the stored tensors.
        quant_algo: "W4A16_AWQ", or None for a plain checkpoint.
        group_size: consecutive input channels that share a scale; None for a plain checkpoint.
        kv_cache_quant_algo: e.g. "FP8"; None when the cache is not quantized.
        exclude_modules: names or patterns of modules that are not quantized, as the checkpoint lists them.
    """

    def __init__(self, checkpoint: Checkpoint, description: Mapping[str, Any]) -> None:
        self.checkpoint = checkpoint
        self.quant_algo: str | None = description.get("quant_algo")
        self.group_size: int | None = description.get("group_size")
        self.kv_cache_quant_algo: str | None = description.get("kv_cache_quant_algo")
        self.exclude_modules: tuple[str, ...] = tuple(description.get("exclude_modules", ()))
        if self.group_size is None and self.quant_algo is not None:
            self.group_size = self._group_size_of_tensors()

    @classmethod
    def open(cls, directory: Path) -> QuantizedCheckpoint:
        """Open `directory`. Raises ModelError when it is damaged, or quantized in a form not known here."""
        description = _read_description(directory)
        if description.get("quant_algo") not in (None, W4A16_AWQ):
            raise ModelError(
                f"the checkpoint is quantized as {description['quant_algo']}, which cannot be read",
                where=str(directory),
                why=f"readable are plain checkpoints and {W4A16_AWQ}",
                fix="start from the unquantized model",
            )
        if description.get("has_zero_point"):
            raise ModelError(
                "the checkpoint has zero points, which its form does not store",
                where=str(directory),
                fix="start from the unquantized model",
            )
        return cls(Checkpoint.open(directory), description)

    def read(self, name: str) -> Tensor:
        """A stored tensor by its full name."""
        return self.checkpoint.read(name)

    def linear(self, module: str) -> QuantizedLinear | Tensor:
        """The linear `module`, e.g. "model.layers.0.self_attn.q_proj".

        Returns:
            a `QuantizedLinear`, or where the linear is not quantized its weight [out, in] as stored.
        """
        stored = self.checkpoint
        if f"{module}.weight_scale" not in stored:
            return stored.read(f"{module}.weight")
        scales_OG = stored.read(f"{module}.weight_scale").float()
        codes_OI = unpack_int4_rows(stored.read(f"{module}.weight"))
        if (
            scales_OG.dim() != 2
            or scales_OG.shape[0] != codes_OI.shape[0]
            or codes_OI.shape[1] % scales_OG.shape[1]
        ):
            raise ModelError(
                f"the shapes of the linear's tensors contradict each other: {list(codes_OI.shape)} codes, "
                f"{list(scales_OG.shape)} scales",
                where=f"{stored.model_dir}: {module}",
                fix="quantize the model again",
            )
        return QuantizedLinear(
            codes_OI,
            scales_OG,
            bits=4,
            pre_quant_scale=self._optional(f"{module}.pre_quant_scale"),
            bias=self._optional(f"{module}.bias"),
        )

    def _optional(self, name: str) -> Tensor | None:
        return self.checkpoint.read(name) if name in self.checkpoint else None

    def _group_size_of_tensors(self) -> int | None:
        """config.json alone does not say it; the shapes of any quantized linear do."""
        for name in self.checkpoint.names:
            if name.endswith(".weight_scale"):
                in_features = self.checkpoint.shape(name.removesuffix("_scale"))[1]
                return in_features // self.checkpoint.shape(name)[1]
        return None


def shards_of(tensors: Mapping[str, StoredTensor], shard_bytes: int) -> Sequence[dict[str, StoredTensor]]:
    """Split tensors, in their order, into runs of at most `shard_bytes`; a larger tensor stands alone."""
    shards: list[dict[str, StoredTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write_weights(out_dir: Path, tensors: Mapping[str, StoredTensor], shard_bytes: int) -> None:
    shards = shards_of(tensors, shard_bytes)
    if len(shards) == 1:
        write_tensor_file(out_dir / SINGLE_FILE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensor_file(out_dir / file_name, shard)
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(out_dir / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _quant_config(scheme: Scheme) -> dict[str, Any]:
    return {
        "producer": _PRODUCER,
        "quantization": {
            "quant_algo": scheme.quant_algo,
            "kv_cache_quant_algo": None,
            "group_size": scheme.group_size,
            "has_zero_point": False,
            "pre_quant_scale": True,
            "exclude_modules": list(scheme.exclude_modules),
        },
    }


def _read_description(directory: Path) -> dict[str, Any]:
    """What the directory says of its quantization; {} for a plain checkpoint."""
    file = directory / QUANT_CONFIG_FILE
    if file.exists():
        description = read_json_object(file).get("quantization")
        if not isinstance(description, dict):
            raise ModelError(
                "there is no object `quantization`", where=str(file), fix="quantize the model again"
            )
        return description
    config = read_json_object(directory / "config.json").get("quantization_config")
    if not config:
        return {}
    if not isinstance(config, dict) or config.get("quant_method") != "modelopt":
        method = config.get("quant_method") if isinstance(config, dict) else config
        raise ModelError(
            f"the checkpoint is quantized in the form {method!r}, which cannot be read",
            where=str(directory / "config.json"),
            why="readable are plain checkpoints and ModelOpt's unified form",
            fix="start from the unquantized model",
        )
    inline = config.get("quantization")
    description = dict(inline) if isinstance(inline, dict) else dict(config)
    description.setdefault("exclude_modules", config.get("ignore", []))
    return description
