"""From one file form to another, layer by layer: how a published quantized checkpoint becomes a source.

Codes, zero points and scales are taken over as they are. What differs between forms is where they lie, and
what a linear may have beside them; a checkpoint that a form cannot hold exactly is refused with the reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from quantize.formats.base import (
    INT8_SQ,
    W4A8_AWQ,
    W4A16,
    W4A16_AWQ,
    WEIGHT_ONLY,
    Description,
    Format,
    LinearScheme,
    Scheme,
)
from quantize.formats.checkpoint import (
    FORMATS,
    QuantizedCheckpoint,
    check_held,
    write_checkpoint,
)
from quantize.formats.fold import Layer, fold_pre_quant_scales
from quantize.formats.tensorfile import StoredTensor, write_tensor_file
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError, QuantizeError, os_error
from toolchain.model.checkpoint import DESCRIPTION_FILES, TORCH_DTYPES, Checkpoint
from toolchain.model.config_json import read_json_object
from toolchain.model.families import (
    EMBEDDING,
    expected_tensors,
    has_bias,
    layer_prefix,
    layer_tensors,
    linear_groups,
    linear_shapes,
)
from toolchain.model.safetensors_file import read_header
from toolchain.model.selection import modules
from toolchain.model.spec import ModelSpec, load_spec
from toolchain.progress import Progress, Silent

AUTO = "auto"
"""In place of a form's name: ModelOpt's if it holds the checkpoint, or else that of compressed-tensors, or
else the one that the checkpoint has."""

OWN = "own"
"""In place of a form's name: the one that the checkpoint has."""

_GROUPS = (128, 64, 32)


def convert_checkpoint(
    source_dir: Path, out_dir: Path, form: str = AUTO, *, progress: Progress | None = None
) -> Scheme:
    """Write the quantized checkpoint in `source_dir`, of any form, to `out_dir` in another.

    In the form that it has it is copied, tensors and description as they are. One decoder layer is in memory
    at a time; what is not part of a quantized linear is copied from where it lies. The same source gives the
    same bytes. `config.json` comes last.

    Args:
        source_dir: a quantized checkpoint of a supported family.
        out_dir: made if need be.
        form: a name of `FORMATS`, "auto" or "own".
        progress: is told of each layer.

    Returns:
        how the output is quantized.

    Raises:
        ModelError: the source is damaged, or its form cannot be read.
        QuantizeError: it is not quantized, or the form cannot hold it.
        StoreError: the file system refuses.
    """
    source = QuantizedCheckpoint.open(source_dir)
    if source.form is None:
        raise QuantizeError(
            "the checkpoint is not quantized",
            where=str(source_dir / "config.json"),
            why="only quantized weights have a file form",
            fix="quantize it with `llmbuild build` and a recipe",
        )
    spec = load_spec(source_dir)
    source.verify(spec)
    target = _target_form(source, spec, form)
    progress = progress or Silent()
    if target is source.form:
        progress.note(f"the checkpoint is in the form {target.name} already: it is copied")
        tensors = {name: _stored(source.checkpoint, name) for name in source.checkpoint.names}
        described = _description(source_dir)
        write_checkpoint(source_dir, out_dir, tensors, source.scheme, target, description=described)
        return source.scheme
    scheme = _target_scheme(source.scheme, spec, target)
    check_held(target, scheme)
    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[source.checkpoint.dtype(EMBEDDING)])
    progress.start(f"convert to {target.name}", spec.num_hidden_layers, "layers")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        # In the output's directory, and so on its disk: there must be room for the checkpoint twice.
        with tempfile.TemporaryDirectory(dir=out_dir, prefix=".layers-") as parts:
            files: list[Path] = []
            finer: list[str] = []
            for index in range(spec.num_hidden_layers):
                files.append(Path(parts) / f"{index:05d}.safetensors")
                layer = _converted_layer(source, spec, index, scheme, target, dtype, finer)
                write_tensor_file(files[-1], {name: StoredTensor.of(t) for name, t in layer.items()})
                progress.advance()
            write_checkpoint(source_dir, out_dir, _in_order(source, spec, files), scheme, target)
        if finer:
            name = str(dtype).removeprefix("torch.")
            progress.note(
                f"scales of {len(finer)} linears are no numbers of {name}: they are stored exactly, but an "
                "engine that rounds them to the model's dtype changes the weights"
            )
    except OSError as error:
        raise os_error(error, "convert the checkpoint") from error
    return scheme


def _target_form(source: QuantizedCheckpoint, spec: ModelSpec, wanted: str) -> Format:
    """The form of a name, or what "auto" or "own" stand for."""
    own = source.form
    assert own is not None
    if wanted == OWN:
        return own
    if wanted != AUTO:
        return FORMATS[wanted]
    for form in (FORMATS["modelopt"], FORMATS["compressed-tensors"]):
        if not form.problems(_target_scheme(source.scheme, spec, form)):
            return form
    return own


def _target_scheme(scheme: Scheme, spec: ModelSpec, form: Format) -> Scheme:
    """How the checkpoint is quantized once it is in `form`."""
    shapes = {
        layer_prefix(layer) + name: shape
        for layer in range(spec.num_hidden_layers)
        for name, shape in linear_shapes(spec, layer).items()
    }
    own = {name: replace(scheme.linears[name], variant="") for name in shapes if name in scheme.linears}
    if form.name == "modelopt":
        # It has no 4-bit weights with a scale per output channel; groups that repeat the scale are the same.
        columns = {shapes[name][1] for name, linear in own.items() if linear.quant_algo == W4A16}
        size = next((size for size in _GROUPS if not any(count % size for count in columns)), None)
        if size is not None:
            own = {
                name: replace(linear, quant_algo=W4A16_AWQ, group_size=size)
                if linear.quant_algo == W4A16
                else linear
                for name, linear in own.items()
            }
    always, linears = modules(spec)
    plain = (*always, *(name for name in linears if name not in own))
    return Scheme(own, plain, scheme.kv_cache_quant_algo)


def _converted_layer(
    source: QuantizedCheckpoint,
    spec: ModelSpec,
    index: int,
    scheme: Scheme,
    form: Format,
    dtype: torch.dtype,
    finer: list[str],
) -> dict[str, Tensor]:
    """The tensors of a decoder layer in `form`, by full name.

    Linears of 16-bit activations whose scales are no numbers of `dtype` are added to `finer`.
    """
    prefix = layer_prefix(index)
    layer = Layer(spec, index, {}, {}, source.kv_cache_quant_algo is not None)
    for name in linear_shapes(spec, index):
        linear = source.linear(prefix + name)
        if isinstance(linear, QuantizedLinear):
            own = scheme.linears[prefix + name]
            layer.linears[name] = _regrouped(_without_surplus_bias(linear, spec, prefix, name), own)
    for name in layer_tensors(spec, index):
        if name.rpartition(".")[0] not in layer.linears:
            layer.plain[name] = source.read(prefix + name)
    if form.holds_pre_quant_scale:
        _add_pre_quant_scales(layer, scheme.linears, dtype)
    else:
        fold_pre_quant_scales(layer, form.name)
    tensors = {prefix + name: tensor for name, tensor in layer.plain.items()}
    for name, linear in layer.linears.items():
        full = prefix + name
        tensors |= form.linear_tensors(full, linear, scheme.linears[full], dtype)
        if scheme.linears[full].quant_algo in WEIGHT_ONLY and not _holds(linear.scales, dtype):
            finer.append(full)
    scales = source.kv_scales(prefix)
    if scales is not None and scheme.kv_cache_quant_algo is not None:
        tensors |= form.kv_tensors(prefix, *scales)
    return tensors


def _without_surplus_bias(
    linear: QuantizedLinear, spec: ModelSpec, prefix: str, name: str
) -> QuantizedLinear:
    """AutoGPTQ stores a bias of zeros where the model has none."""
    if linear.bias is None or has_bias(spec, name):
        return linear
    if bool(linear.bias.any()):
        raise ModelError(
            "the linear has a bias, which the model does not have",
            where=prefix + name,
            fix="check that config.json belongs to these weights",
        )
    return replace(linear, bias=None)


def _regrouped(linear: QuantizedLinear, scheme: LinearScheme) -> QuantizedLinear:
    """A linear with a scale per output channel, told as groups that repeat it, where `scheme` has groups."""
    if scheme.group_size is None or linear.is_fp4 or linear.scales.shape[1] != 1:
        return linear
    shape = linear.out_features, linear.in_features // scheme.group_size
    return replace(linear, scales=linear.scales.expand(shape).contiguous())


def _add_pre_quant_scales(layer: Layer, schemes: Mapping[str, LinearScheme], dtype: torch.dtype) -> None:
    """Ones where ModelOpt's form has a pre_quant_scale, and its readers may insist on one."""
    for group in linear_groups(layer.spec, layer.index):
        for name in group.members:
            linear = layer.linears.get(name)
            if linear is None or linear.pre_quant_scale is not None:
                continue
            algo = schemes[layer_prefix(layer.index) + name].quant_algo
            if algo == INT8_SQ or (algo in (W4A16_AWQ, W4A8_AWQ) and not group.source.endswith("norm")):
                ones_I = torch.ones(linear.in_features, dtype=dtype)
                layer.linears[name] = replace(linear, pre_quant_scale=ones_I)


def _in_order(source: QuantizedCheckpoint, spec: ModelSpec, files: list[Path]) -> dict[str, StoredTensor]:
    """Everything to store, in the order of the model: the embedding, the converted layers, norm and head."""
    stored = source.checkpoint
    tensors: dict[str, StoredTensor] = {}
    for name in expected_tensors(spec):
        if name.startswith("model.layers."):
            continue
        if name in stored:
            tensors[name] = _stored(stored, name)
        if name == EMBEDDING:
            for file in files:
                for own, entry in read_header(file).items():
                    tensors[own] = StoredTensor(entry.dtype, entry.shape, entry.location)
    return tensors


def _holds(scales: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(scales.to(dtype).float(), scales)


def _stored(checkpoint: Checkpoint, name: str) -> StoredTensor:
    return StoredTensor(checkpoint.dtype(name), checkpoint.shape(name), checkpoint.location(name))


def _description(directory: Path) -> Description:
    """What a checkpoint says of itself, word for word."""
    return Description(
        read_json_object(directory / "config.json").get("quantization_config") or {},
        {
            name: read_json_object(directory / name)
            for name in DESCRIPTION_FILES
            if (directory / name).is_file()
        },
    )
