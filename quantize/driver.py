"""The layer-streaming driver: calibration flows from layer to layer, one layer in memory at a time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F

from quantize.calibration import Calibration
from quantize.device import arithmetic, batch_size, choose_device
from quantize.formats.base import Format, Scheme
from quantize.formats.checkpoint import FORMATS, check_held, form_of, write_checkpoint
from quantize.formats.tensorfile import StoredTensor, write_text_file
from quantize.layer import DecoderLayer, rotary_tables
from quantize.layer_run import LayerRun, LayerSettings
from quantize.linear import QuantizedLinear
from quantize.methods.base import Method
from quantize.read_ahead import ReadAhead
from quantize.selection import Override, assign_methods, check_shapes
from quantize.states import Saver, States
from quantize.work import WorkDir
from toolchain.errors import QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.config_json import read_json_object
from toolchain.model.families import (
    EMBEDDING,
    expected_tensors,
    layer_prefix,
    layer_tensors,
    linear_shapes,
)
from toolchain.model.safetensors_file import read_header
from toolchain.model.selection import modules
from toolchain.model.spec import ModelSpec, load_spec
from toolchain.progress import Progress, Silent

REPORT_FILE = "quantization_report.json"

# Raise it when the same source and recipe come out as other bytes: states of before are then refused.
_STATE_VERSION = 2
_SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class Machine:
    """Where and within which memory quantization works.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        hidden_memory: bytes of host memory that the calibration set's hidden states may take; more go to a
            file in the working directory. None for no limit.
    """

    device: str = "auto"
    hidden_memory: int | None = None


def quantize_model(
    source_dir: Path,
    out_dir: Path,
    work_dir: Path,
    *,
    method: Method | None,
    calibration: Calibration | None = None,
    exclude: Sequence[str] = ("lm_head",),
    overrides: Sequence[Override] = (),
    kv_cache: str | None = None,
    form: Format = FORMATS["modelopt"],
    machine: Machine = Machine(),
    about: Mapping[str, Any] = MappingProxyType({}),
    events: Progress | None = None,
) -> dict[str, Any]:
    """Write `source_dir`, quantized, to `out_dir`.

    Killed at any instant and called again, it goes on after the last finished layer, and the files come
    out the same. The bytes depend on source, method, calibration and exclusions, and on how the machine
    multiplies matrices (device, torch version, number of threads).

    Args:
        source_dir: a plain model of a supported family.
        out_dir: made if need be; whole when it holds `config.json`.
        work_dir: keeps the state to resume from, for this quantization alone; the caller deletes it.
        method: how linears are quantized for which no override says otherwise; None leaves them alone.
        calibration: what methods see; not needed where none looks at activations.
        exclude: modules to leave alone: names or glob patterns ("model.layers.0.*", "*.down_proj").
            lm_head and the embedding always are.
        overrides: other methods for some linears; the first that matches a linear wins.
        kv_cache: "FP8" or "INT8" to measure the scales of a quantized KV cache as well.
        form: the file form of the output.
        machine: where and within which memory it works; the bytes depend on the device alone.
        about: JSON that goes into the report as it is.
        events: is told of each layer.

    Returns:
        what `quantization_report.json` in `out_dir` says, and `seconds_per_layer` of the layers done now.

    Raises:
        ModelError: the source is damaged, of another family, or quantized already.
        QuantizeError: calibration, shapes or form do not suit the methods; NaN or Inf in the activations; the
            state in `work_dir` belongs to another quantization.
        ToolchainError: the device is not there.
        StoreError: the file system refuses.
    """
    events = events or Silent()
    spec = load_spec(source_dir)
    checkpoint = Checkpoint.open(source_dir)
    quantized = form_of(source_dir, read_json_object(source_dir / "config.json"))
    if quantized is not None:
        raise QuantizeError(
            "the source model is quantized already",
            where=str(source_dir / "config.json"),
            why=f"it is a checkpoint in the form {quantized.name}",
            fix="start from the unquantized model, or set quantization.method to none to take it as it is",
        )
    checkpoint.verify(spec)
    methods = assign_methods(spec, method, exclude, overrides)
    if not methods and kv_cache is None:
        tensors = {name: _stored(checkpoint, name) for name in expected_tensors(spec) if name in checkpoint}
        plain: dict[str, Any] = {"method": {"method": "none"}, **about}
        if about:
            out_dir.mkdir(parents=True, exist_ok=True)
            write_text_file(out_dir / REPORT_FILE, json.dumps(plain, indent=2) + "\n")
        write_checkpoint(source_dir, out_dir, tensors, None, form)
        return plain | {"seconds_per_layer": []}

    check_shapes(spec, methods)
    scheme = Scheme({name: own.scheme for name, own in methods.items()}, _left_alone(spec, methods), kv_cache)
    check_held(form, scheme)
    run = _Run(spec, checkpoint, methods, scheme, form, calibration, choose_device(machine.device))
    work = WorkDir(work_dir, run.fingerprint())
    seconds = run.layers(work, machine, events)

    tensors = {}
    for name in expected_tensors(spec):
        if name in checkpoint and not name.startswith("model.layers."):
            tensors[name] = _stored(checkpoint, name)
        if name == EMBEDDING:
            for layer in range(spec.num_hidden_layers):
                for stored_name, entry in read_header(work.layer_file(layer)).items():
                    tensors[stored_name] = StoredTensor(entry.dtype, entry.shape, entry.location)
    report = run.fingerprint() | {
        "calibration_tokens": 0 if calibration is None else calibration.tokens.numel(),
        "linears": {
            name: facts
            for layer in range(spec.num_hidden_layers)
            for name, facts in work.layer_report(layer).items()
        },
    }
    unreached = [name for name, facts in report["linears"].items() if facts.get("calibration_tokens") == 0]
    report |= about
    if unreached:
        report["unreached_experts"] = list(dict.fromkeys(name.rpartition(".")[0] for name in unreached))
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text_file(out_dir / REPORT_FILE, json.dumps(report, indent=2) + "\n")
    write_checkpoint(source_dir, out_dir, tensors, scheme, form)
    return report | {"seconds_per_layer": seconds}


class _Run:
    """One quantization: what stays the same from layer to layer, and the walk through them."""

    def __init__(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint,
        methods: Mapping[str, Method],
        scheme: Scheme,
        form: Format,
        calibration: Calibration | None,
        device: torch.device,
    ) -> None:
        self.checkpoint, self.scheme, self.calibration = checkpoint, scheme, calibration
        looks = scheme.kv_cache_quant_algo is not None or any(
            method.needs_calibration for method in methods.values()
        )
        if looks and calibration is None:
            raise QuantizeError(
                "the method needs calibration data",
                where="quantization",
                fix="give calibration: {dataset: file:calibration.txt}",
            )
        length = calibration.tokens.shape[1] if calibration is not None and looks else 1
        if length > spec.max_position_embeddings:
            raise QuantizeError(
                f"calibration sequences of {length} tokens exceed the model's context of "
                f"{spec.max_position_embeddings}",
                where="calibration",
                fix=f"set seq_len to at most {spec.max_position_embeddings}",
            )
        self.looks = looks
        dtype = arithmetic(checkpoint.dtype(EMBEDDING), device)
        cos_SR, sin_SR = rotary_tables(spec, length, dtype)
        self.settings = LayerSettings(
            spec,
            ReadAhead(checkpoint, device),
            methods,
            form,
            scheme.kv_cache_quant_algo,
            0 if calibration is None else calibration.seed,
            device,
            dtype,
            (cos_SR.to(device), sin_SR.to(device)),
        )
        count = calibration.tokens.shape[0] if calibration is not None else 0
        size = batch_size(length, device)
        self.batches = [slice(at, min(at + size, count)) for at in range(0, count, size)]

    def fingerprint(self) -> dict[str, Any]:
        """What the state of an unfinished run must agree in."""
        settings, calibration = self.settings, self.calibration
        parameters = {
            name: json.dumps(method.parameters(), sort_keys=True) for name, method in settings.methods.items()
        }
        distinct = dict.fromkeys(parameters.values())
        everywhere = next(iter(distinct)) if len(distinct) == 1 else None
        return {
            "state_version": _STATE_VERSION,
            "source": _source_digest(self.checkpoint),
            "method": json.loads(everywhere) if everywhere else {"method": "mixed" if distinct else "none"},
            "methods": {} if everywhere else {name: json.loads(own) for name, own in parameters.items()},
            "excluded": sorted(self.scheme.exclude_modules),
            "kv_cache": self.scheme.kv_cache_quant_algo,
            "format": settings.form.name,
            "calibration": None if calibration is None else calibration.digest,
            "seed": settings.seed,
            "device": settings.device.type,
            "arithmetic": str(settings.dtype).removeprefix("torch."),
        }

    @torch.inference_mode()
    def layers(self, work: WorkDir, machine: Machine, events: Progress) -> list[float]:
        """Quantize every layer that is not finished yet. Returns the seconds of each."""
        done, total = work.finished_layers(), self.settings.spec.num_hidden_layers
        events.start("quantize", total, "layers", done=done)
        if done == total:
            return []
        hidden, between = self._states(work, machine) if self.looks else (None, None)
        if hidden is not None:
            self._enter(done, hidden, work)
        saver, seconds = Saver(), []
        for index in range(done, total):
            started = time.perf_counter()
            if index + 1 < total:
                self._read_ahead(index + 1)
            layer = LayerRun(self.settings, index)
            if hidden is None or between is None:
                layer.quantize_weights()
            else:
                layer.quantize(hidden, between, saver.wait)
            work.finish_layer(index, layer.finished, layer.report)
            for note in layer.notes:
                events.note(note)
            if hidden is not None and index + 1 < total and saver.due:
                saver.start(lambda values=hidden.values, at=index + 1: _keep(work, at, values))  # type: ignore[misc]
            events.advance()
            seconds.append(time.perf_counter() - started)
        saver.wait()
        return seconds

    def _states(self, work: WorkDir, machine: Machine) -> tuple[States, States]:
        """Space for what enters a layer, and for what its attention makes of it."""
        spec, settings = self.settings.spec, self.settings
        assert self.calibration is not None
        count, length = self.calibration.tokens.shape
        context = spec.num_attention_heads * spec.head_dim
        # Experts keep the sum of their answers where the attention's contexts were.
        widths = spec.hidden_size, context if spec.moe is None else max(context, spec.hidden_size)
        size = count * length * sum(widths) * settings.dtype.itemsize
        spill = machine.hidden_memory is not None and size > machine.hidden_memory
        hidden, between = (
            States(
                (count, length, width),
                settings.dtype,
                device=settings.device,
                batches=self.batches,
                file=work.path / f".{name}.partial" if spill else None,
            )
            for name, width in zip(("hidden", "between"), widths, strict=True)
        )
        return hidden, between

    def _enter(self, layer: int, hidden: States, work: WorkDir) -> None:
        """Make `hidden` what enters `layer`, from the last states that were saved, or from the tokens."""
        settings = self.settings
        latest = work.latest_hidden(layer)
        if latest is not None:
            hidden.values.copy_(work.load_hidden(latest))
        else:
            assert self.calibration is not None
            embedding_VH = self.checkpoint.view(EMBEDDING)
            for batch in self.batches:
                hidden.values[batch] = F.embedding(self.calibration.tokens[batch], embedding_VH).to(
                    settings.dtype
                )
        for index in range(latest or 0, layer):
            finished = self._finished_layer(work, index)
            for batch, x_BSH in hidden:
                hidden.write(batch, finished.forward(x_BSH, settings.rotary))
            hidden.settle()

    def _finished_layer(self, work: WorkDir, index: int) -> DecoderLayer:
        """A layer that was quantized before, as the forward pass had it."""
        settings, prefix = self.settings, layer_prefix(index)
        stored = Checkpoint(work.path, read_header(work.layer_file(index)))
        linears = linear_shapes(settings.spec, index)
        tensors = {}
        for name in layer_tensors(settings.spec, index):
            module = name.removesuffix(".weight")
            method = settings.methods.get(prefix + module) if module in linears else None
            if method is None:
                tensors[name] = stored.read(prefix + name).to(settings.device, settings.dtype)
            else:
                linear: QuantizedLinear = settings.form.read_linear(stored, prefix + module, method.scheme)
                tensors[name] = linear.to(settings.device).dequantize(settings.dtype)
        return DecoderLayer(settings.spec, index, tensors)

    def _read_ahead(self, index: int) -> None:
        """Let the layer's weights come while the one before is worked on; experts are too many to hold."""
        spec, prefix = self.settings.spec, layer_prefix(index)
        names = [prefix + name for name in layer_tensors(spec, index)]
        self.settings.source.start(names, hold=not spec.is_sparse(index))


def _keep(work: WorkDir, layer: int, values: torch.Tensor) -> None:
    work.save_hidden(layer, values)
    work.drop_hidden(before=layer)


def _left_alone(spec: ModelSpec, methods: Mapping[str, Method]) -> tuple[str, ...]:
    """The modules that stay as they are, as the checkpoint lists them."""
    always, linears = modules(spec)
    return (*always, *(name for name in linears if name not in methods))


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
