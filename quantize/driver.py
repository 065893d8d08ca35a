"""The layer-streaming driver: the calibration set flows from layer to layer, one layer in memory at a time.

Within a layer every group of linears is quantized on inputs that the groups before it, already quantized,
produce. That takes one forward pass of the layer, in steps, and the gate and up projections once more.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.calibration import Calibration
from quantize.formats.modelopt import Scheme, linear_tensors, write_checkpoint
from quantize.formats.tensorfile import StoredTensor, write_text_file
from quantize.layer import DecoderLayer, rotary_tables
from quantize.linear import QuantizedLinear
from quantize.method import Group, Method
from quantize.selection import check_shapes, excluded_modules
from quantize.work import WorkDir
from toolchain.errors import QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import (
    EMBEDDING,
    LinearGroup,
    expected_tensors,
    layer_prefix,
    layer_tensors,
    linear_groups,
)
from toolchain.model.safetensors_file import read_header
from toolchain.model.spec import ModelSpec, load_spec
from toolchain.progress import Progress, Silent

REPORT_FILE = "quantization_report.json"

# Raise it when the same source and recipe come out as other bytes: states of before are then refused.
_STATE_VERSION = 1
# Tokens that go through a step at a time.
_BATCH_TOKENS = 2048
_SAMPLED_BYTES = 4096


def quantize_model(
    source_dir: Path,
    out_dir: Path,
    work_dir: Path,
    *,
    method: Method | None,
    calibration: Calibration | None = None,
    exclude: Sequence[str] = ("lm_head",),
    events: Progress | None = None,
) -> dict[str, Any]:
    """Write `source_dir`, quantized, to `out_dir` in ModelOpt's unified Hugging Face form.

    Killed at any instant and called again, it goes on after the last finished layer, and the files come
    out the same. The bytes depend on source, method, calibration and exclusions, and on how the machine
    multiplies matrices (processor, torch version, number of threads).

    Args:
        source_dir: a plain model of a supported family.
        out_dir: made if need be; whole when it holds `config.json`.
        work_dir: keeps the state to resume from, for this quantization alone; the caller deletes it.
        method: None copies the tensors as they are.
        calibration: what the method sees; not needed when `method` is None.
        exclude: modules to leave alone: names or glob patterns ("model.layers.0.*", "*.down_proj").
            lm_head and the embedding always are.
        events: is told of each layer.

    Returns:
        what `quantization_report.json` in `out_dir` says, and `seconds_per_layer` of the layers done now.

    Raises:
        ModelError: the source is damaged, of another family, or quantized already.
        QuantizeError: calibration or shapes do not suit the method; NaN or Inf in the activations; the
            state in `work_dir` belongs to another quantization.
        StoreError: the file system refuses.
    """
    events = events or Silent()
    spec = load_spec(source_dir)
    checkpoint = Checkpoint.open(source_dir)
    if spec.quantization is not None:
        raise QuantizeError(
            "the source model is quantized already",
            where=str(source_dir / "config.json"),
            why="it has a quantization_config",
            fix="start from the unquantized model",
        )
    checkpoint.verify(spec)
    if method is None:
        tensors = {name: _stored(checkpoint, name) for name in expected_tensors(spec) if name in checkpoint}
        write_checkpoint(source_dir, out_dir, tensors, None)
        return {"method": {"method": "none"}, "seconds_per_layer": []}

    if calibration is None:
        raise QuantizeError(
            "the method needs calibration data",
            where="quantization",
            fix="give calibration: {dataset: file:calibration.txt}",
        )
    excluded = excluded_modules(spec, exclude)
    check_shapes(spec, method.group_size, excluded)
    run = _Run(spec, checkpoint, method, calibration, excluded)
    work = WorkDir(work_dir, run.fingerprint())
    seconds = run.layers(work, events)

    tensors = {}
    for name in expected_tensors(spec):
        if name in checkpoint and not name.startswith("model.layers."):
            tensors[name] = _stored(checkpoint, name)
        if name == EMBEDDING:
            for layer in range(spec.num_hidden_layers):
                for stored_name, entry in read_header(work.layer_file(layer)).items():
                    tensors[stored_name] = StoredTensor(entry.dtype, entry.shape, entry.location)
    report = run.fingerprint() | {
        "calibration_tokens": calibration.tokens.numel(),
        "linears": {
            name: facts
            for layer in range(spec.num_hidden_layers)
            for name, facts in work.layer_report(layer).items()
        },
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text_file(out_dir / REPORT_FILE, json.dumps(report, indent=2) + "\n")
    write_checkpoint(source_dir, out_dir, tensors, Scheme(method.quant_algo, method.group_size, excluded))
    return report | {"seconds_per_layer": seconds}


class _Run:
    """One quantization: what stays the same from layer to layer."""

    def __init__(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint,
        method: Method,
        calibration: Calibration,
        excluded: Sequence[str],
    ) -> None:
        length = calibration.tokens.shape[1]
        if length > spec.max_position_embeddings:
            raise QuantizeError(
                f"calibration sequences of {length} tokens exceed the model's context of "
                f"{spec.max_position_embeddings}",
                where="calibration",
                fix=f"set seq_len to at most {spec.max_position_embeddings}",
            )
        self.spec, self.checkpoint, self.method, self.calibration = spec, checkpoint, method, calibration
        self.excluded = frozenset(excluded)
        stored = checkpoint.dtype(EMBEDDING)
        # bfloat16 products are exact enough for statistics, and several times faster where the CPU has them.
        fast = stored == "BF16" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.dtype = torch.bfloat16 if fast else torch.float32
        self.rotary = rotary_tables(spec, length, self.dtype)
        size = max(1, _BATCH_TOKENS // length)
        self.batches = [slice(at, at + size) for at in range(0, calibration.tokens.shape[0], size)]

    def fingerprint(self) -> dict[str, Any]:
        """What the state of an unfinished run must agree in."""
        return {
            "state_version": _STATE_VERSION,
            "source": _source_digest(self.checkpoint),
            "method": self.method.parameters(),
            "excluded": sorted(self.excluded),
            "calibration": self.calibration.digest,
            "seed": self.calibration.seed,
            "arithmetic": str(self.dtype).removeprefix("torch."),
        }

    @torch.inference_mode()
    def layers(self, work: WorkDir, events: Progress) -> list[float]:
        """Quantize every layer that is not finished yet. Returns the seconds of each."""
        done, total = work.finished_layers(), self.spec.num_hidden_layers
        events.start("quantize", total, "layers", done=done)
        if done == total:
            return []
        if done == 0 and not work.has_hidden(0):
            embedding_VH = self.checkpoint.read(EMBEDDING)
            work.save_hidden(0, F.embedding(self.calibration.tokens, embedding_VH).to(self.dtype))
            del embedding_VH
        if not work.has_hidden(done):
            raise QuantizeError(
                f"the working directory has lost the hidden states that enter layer {done}",
                where=str(work.path),
                fix="delete the directory and run the same command again",
            )
        hidden_BSH = work.load_hidden(done)
        seconds = []
        for index in range(done, total):
            started = time.perf_counter()
            layer = _LayerRun(self, index)
            layer.quantize(hidden_BSH)
            if index + 1 < total:
                work.save_hidden(index + 1, hidden_BSH)
            work.finish_layer(index, layer.finished, layer.report)
            events.advance()
            seconds.append(time.perf_counter() - started)
        return seconds


class _LayerRun:
    """The quantization of one decoder layer.

    Attributes:
        finished: the layer's tensors in their stored form, by full name.
        report: by full name of each quantized linear, what the method says of it.
    """

    def __init__(self, run: _Run, index: int) -> None:
        self.run, self.index = run, index
        self.prefix = layer_prefix(index)
        self.original = {name: run.checkpoint.read(self.prefix + name) for name in layer_tensors(run.spec)}
        self.layer = DecoderLayer(
            run.spec, index, {name: tensor.to(run.dtype) for name, tensor in self.original.items()}
        )
        self.finished = {self.prefix + name: tensor for name, tensor in self.original.items()}
        self.report: dict[str, Any] = {}

    def quantize(self, hidden_BSH: Tensor) -> None:
        """Quantize group by group; `hidden_BSH`, what enters the layer, becomes what leaves it."""
        layer, rotary = self.layer, self.run.rotary
        channels = self.run.spec.num_attention_heads * self.run.spec.head_dim
        context_BSQ = hidden_BSH.new_empty(*hidden_BSH.shape[:2], channels)

        def attend(batch: slice) -> Tensor:
            context_BSQ[batch] = layer.attend(layer.attention_input(hidden_BSH[batch]), rotary)
            return context_BSQ[batch]

        def end_attention(batch: slice) -> Tensor:
            hidden_BSH[batch] = layer.after_attention(hidden_BSH[batch], context_BSQ[batch])
            return layer.mlp_input(hidden_BSH[batch])

        inputs: dict[str, Callable[[slice], Tensor]] = {
            "qkv": lambda batch: layer.attention_input(hidden_BSH[batch]),
            "o": attend,
            "gate_up": end_attention,
            "down": lambda batch: layer.activate(layer.mlp_input(hidden_BSH[batch])),
        }
        for number, group in enumerate(linear_groups(self.run.spec)):
            self._quantize_group(number, group, inputs[group.kind])
        for batch in self.run.batches:
            activated_BSF = layer.activate(layer.mlp_input(hidden_BSH[batch]))
            hidden_BSH[batch] = layer.after_mlp(hidden_BSH[batch], activated_BSF)
            self._check_finite(hidden_BSH[batch], "mlp.down_proj", "output")

    def _quantize_group(self, number: int, group: LinearGroup, inputs: Callable[[slice], Tensor]) -> None:
        """Show the method the group's inputs, and put its answer into the layer and into `finished`."""
        names = [name for name in group.members if self.prefix + name not in self.run.excluded]
        seed = (self.run.calibration.seed << 20) + 4 * self.index + number
        in_features = self.original[f"{group.members[0]}.weight"].shape[1]
        statistics = self.run.method.observe(in_features, seed) if names else None
        for batch in self.run.batches:
            x_BSI = inputs(batch)
            self._check_finite(x_BSI, group.members[0], "input")
            if statistics is not None:
                statistics.update(x_BSI.flatten(0, 1))
        if statistics is None:
            return

        from_norm = f"{group.source}.weight" in self.original and group.source.endswith("layernorm")
        whole = len(names) == len(group.members)
        weights = {name: self.original[f"{name}.weight"] for name in names}
        biases = {name: self.original[f"{name}.bias"] for name in names if f"{name}.bias" in self.original}
        norm = self.original[f"{group.source}.weight"] if from_norm and whole else None
        answer = self.run.method.quantize(Group(weights, biases, norm, not from_norm), statistics)
        if answer.norm is not None:
            self._replace(f"{group.source}.weight", answer.norm)
        for name, linear in answer.linears.items():
            self._check_scales(name, linear)
            self.finished |= linear_tensors(self.prefix + name, linear)
            self.layer.tensors[f"{name}.weight"] = linear.dequantize(self.run.dtype)
        self.report |= {self.prefix + name: facts for name, facts in answer.report.items()}

    def _replace(self, name: str, tensor: Tensor) -> None:
        self.finished[self.prefix + name] = tensor
        self.layer.tensors[name] = tensor.to(self.run.dtype)

    def _check_finite(self, x: Tensor, module: str, side: str) -> None:
        if not torch.isfinite(x.sum()):
            raise QuantizeError(
                f"NaN or Inf in the {side} of the module",
                where=self.prefix + module,
                why="the calibration set's activations overflow, or the weights before it are damaged",
                fix="check the source model's weights; a bfloat16 model cast to float16 overflows like this",
            )

    def _check_scales(self, name: str, linear: QuantizedLinear) -> None:
        if not linear.scales.isfinite().all():
            raise QuantizeError(
                "the weight holds NaN or Inf", where=self.prefix + name, fix="download the source model again"
            )


def _stored(checkpoint: Checkpoint, name: str) -> StoredTensor:
    return StoredTensor(checkpoint.dtype(name), checkpoint.shape(name), checkpoint.location(name))


def _source_digest(checkpoint: Checkpoint) -> str:
    """sha256 of config.json, and of each tensor's name, dtype, shape and first bytes.

    Enough to notice a state that is used with another model by mistake; a stage's key covers every byte.
    """
    digest = hashlib.sha256((checkpoint.model_dir / "config.json").read_bytes())
    for name in sorted(checkpoint.names):
        location = checkpoint.location(name)
        digest.update(f"{name} {checkpoint.dtype(name)} {checkpoint.shape(name)}".encode())
        with location.file.open("rb") as file:
            file.seek(location.offset)
            digest.update(file.read(min(location.nbytes, _SAMPLED_BYTES)))
    return digest.hexdigest()
