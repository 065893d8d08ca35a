"""Checkpoint directories in any file form: written in one of them, opened in whichever they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantize.formats.awq import AutoAwq
from quantize.formats.base import FLOATS, Description, Format, Scheme
from quantize.formats.compressed_tensors import CompressedTensors
from quantize.formats.gptq import Gptq
from quantize.formats.modelopt import ModelOpt
from quantize.formats.tensorfile import StoredTensor, write_tensor_file, write_text_file
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError, QuantizeError, os_error
from toolchain.model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from toolchain.model.config_json import read_json_object
from toolchain.model.families import expected_tensors, layer_prefix, linear_shapes
from toolchain.model.spec import ModelSpec

_FORMS: tuple[Format, ...] = (ModelOpt(), Gptq(), AutoAwq(), CompressedTensors())

FORMATS: Mapping[str, Format] = {form.name: form for form in _FORMS}
"""Every file form, by its name in recipes."""

SHARD_BYTES = 5_000_000_000

# Everything of a source directory, besides config and weights, that a server of the model needs.
_COMPANIONS = (
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.tiktoken", "spiece.model", "chat_template*", "LICENSE*", "USE_POLICY*"),
)


def check_held(form: Format, scheme: Scheme) -> None:
    """Raise one QuantizeError that tells everything of `scheme` that `form` cannot hold."""
    problems = form.problems(scheme)
    if problems:
        able = [other.name for other in FORMATS.values() if not other.problems(scheme)]
        raise QuantizeError(
            f"the form {form.name} cannot hold the quantized model",
            where="quantization.format",
            why="; ".join(problems),
            fix=f"use the form {' or '.join(able)}" if able else "quantize with another method",
        )


def write_checkpoint(
    source_dir: Path,
    out_dir: Path,
    tensors: Mapping[str, StoredTensor],
    scheme: Scheme | None,
    form: Format,
    *,
    description: Description | None = None,
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
        scheme: what `config.json` tells; None for a plain checkpoint.
        form: the form that the tensors are in.
        description: what to tell instead, where the tensors are somebody else's.
        shard_bytes: the size above which the weights are split into several files.

    Raises:
        StoreError: the file system refuses.
    """
    config = read_json_object(source_dir / "config.json")
    config.pop("quantization_config", None)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for pattern in _COMPANIONS:
            for file in sorted(source_dir.glob(pattern)):
                if file.is_file():
                    shutil.copyfile(file, out_dir / file.name)
    except OSError as error:
        raise os_error(error, "copy the tokenizer and its companions") from error
    _write_weights(out_dir, tensors, shard_bytes)
    if scheme is not None and description is None:
        description = form.describe(scheme)
    if description is not None:
        for name, content in description.files.items():
            _write_json(out_dir / name, content)
        if description.quantization_config:
            config["quantization_config"] = description.quantization_config
    _write_json(out_dir / "config.json", config)


def form_of(directory: Path, config: Mapping[str, Any]) -> Format | None:
    """The form of the checkpoint with this `config.json`; None for a plain one.

    Raises ModelError for a form that is not known here.
    """
    form = next((form for form in _FORMS if form.recognises(directory, config)), None)
    described = config.get("quantization_config")
    if form is None and described:
        method = described.get("quant_method") if isinstance(described, dict) else described
        raise ModelError(
            f"the checkpoint is quantized in the form {method!r}, which cannot be read",
            where=str(directory / "config.json"),
            why=f"readable are plain checkpoints and the forms {', '.join(FORMATS)}",
            fix="start from the unquantized model",
        )
    return form


class QuantizedCheckpoint:
    """A checkpoint directory, plain or of any known form, linear by linear.

    Attributes:
        checkpoint: the stored tensors.
        form: the file form; None for a plain checkpoint.
        scheme: how it is quantized; without linears for a plain checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, form: Format | None, scheme: Scheme) -> None:
        self.checkpoint, self.form, self.scheme = checkpoint, form, scheme

    @classmethod
    def open(cls, directory: Path) -> QuantizedCheckpoint:
        """Open `directory`. Raises ModelError when it is damaged, or quantized in a form not known here."""
        config = read_json_object(directory / "config.json")
        form = form_of(directory, config)
        checkpoint = Checkpoint.open(directory)
        scheme = Scheme({}) if form is None else form.scheme(directory, config, checkpoint)
        return cls(checkpoint, form, scheme)

    @property
    def quant_algo(self) -> str | None:
        """The algorithm of all linears, "MIXED_PRECISION" where they differ, None for a plain checkpoint."""
        return self.scheme.quant_algo

    @property
    def group_size(self) -> int | None:
        """Input channels that share a scale; None for a plain checkpoint, or where there are no groups."""
        return self.scheme.group_size

    @property
    def kv_cache_quant_algo(self) -> str | None:
        """E.g. "FP8"; None when the cache is not quantized."""
        return self.scheme.kv_cache_quant_algo

    @property
    def exclude_modules(self) -> tuple[str, ...]:
        """Names or patterns of modules that are not quantized, as the checkpoint lists them."""
        return self.scheme.exclude_modules

    def read(self, name: str) -> Tensor:
        """A stored tensor by its full name."""
        return self.checkpoint.read(name)

    def linear(self, module: str) -> QuantizedLinear | Tensor:
        """The linear `module`, e.g. "model.layers.0.self_attn.q_proj".

        Returns:
            a `QuantizedLinear`, or where the linear is not quantized its weight [out, in] as stored.
        """
        own = self.scheme.linears.get(module)
        if own is None or self.form is None:
            return self.checkpoint.read(f"{module}.weight")
        return self.form.read_linear(self.checkpoint, module, own)

    def verify(self, spec: ModelSpec) -> None:
        """Check that the tensors are those of the model, each linear stored as its scheme says.

        Raises ModelError: tensors are missing, are not the model's or have other shapes; something is
        quantized that must not be; a plain weight is stored as something else than floats.
        """
        linears = {
            layer_prefix(layer) + name: shape
            for layer in range(spec.num_hidden_layers)
            for name, shape in linear_shapes(spec, layer).items()
        }
        strange = [name for name in self.scheme.linears if name not in linears]
        if strange:
            raise ModelError(
                f"{strange[0]} is quantized",
                where=str(self.checkpoint.model_dir),
                why="only the linears of the decoder layers may be, and this model has no such linear"
                if strange[0].startswith("model.layers.")
                else "embedding, routers and output layer are read unquantized",
                fix="start from the unquantized model",
            )
        layouts = {}
        if self.form is not None:
            for module, own in self.scheme.linears.items():
                layouts[module] = self.form.layout(own, *linears[module])
        self.checkpoint.verify(
            spec,
            replaced=frozenset(f"{module}.weight" for module in layouts),
            beside=frozenset(
                f"{module}.{name}"
                for module, layout in layouts.items()
                for name in {**layout.required, **layout.optional}
            )
            | self._kv_names(spec),
        )
        for module, layout in layouts.items():
            layout.check(self.checkpoint, module)
        for name in expected_tensors(spec):
            if name in self.checkpoint and name.removesuffix(".weight") not in layouts:
                dtype = self.checkpoint.dtype(name)
                if dtype not in FLOATS:
                    raise ModelError(
                        f"{name} is stored as {dtype}, but nothing says how it is quantized",
                        where=str(self.checkpoint.model_dir),
                        fix="download the model again, or start from the unquantized model",
                    )

    def _kv_names(self, spec: ModelSpec) -> frozenset[str]:
        """The names of the scales of the KV cache, if it is quantized."""
        if self.form is None or self.kv_cache_quant_algo is None:
            return frozenset()
        one = torch.ones(())
        return frozenset(
            name
            for layer in range(spec.num_hidden_layers)
            for name in self.form.kv_tensors(layer_prefix(layer), one, one)
        )

    def kv_scales(self, layer_prefix: str) -> tuple[Tensor, Tensor] | None:
        """The float32 scalar scales of a layer's keys and values; None where the cache is not quantized."""
        return None if self.form is None else self.form.kv_scales(self.checkpoint, layer_prefix)


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


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    write_text_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
