"""How much each group of linears suffers from each method: one streamed pass over the source model.

For every group and method the group alone is quantized, on the activations that the source itself produces,
and the layer is computed with it. What counts is how far that moves what leaves the layer: for each token the
square of the difference over the square of the source's, averaged over the tokens. A token counts the same
whatever its size, since the final norm makes all tokens equally large. Rounded inputs (fp8, int8, fp4) are
simulated as an engine would compute them.

To first order these errors add, within a layer and from layer to layer, so that the sum over a choice of
methods tells how good the choice is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.calibration import Calibration
from quantize.device import arithmetic, batch_size, choose_device
from quantize.driver import Machine
from quantize.formats.base import Format
from quantize.formats.tensorfile import write_text_file
from quantize.layer import DecoderLayer, Simulation, rotary_tables
from quantize.methods.base import Group, Method, QuantizedGroup
from quantize.simulate import input_rounding
from quantize.states import States
from quantize.work import WorkDir
from toolchain.errors import QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import EMBEDDING, LinearGroup, layer_prefix, layer_tensors, linear_groups
from toolchain.model.spec import load_spec
from toolchain.progress import Progress, Silent

_STATE_VERSION = 1
# Tokens on which a method's error is measured; more change its second digit at most.
_MEASURED_TOKENS = 16_384


@dataclass(frozen=True)
class Cost:
    """What one method does to a unit.

    Args:
        error: the mean over tokens of |difference|^2 / |source|^2 after the layer.
        nbytes: what the unit's linears take in the checkpoint.
    """

    error: float
    nbytes: int


@dataclass(frozen=True)
class Unit:
    """Linears that get one method together.

    Args:
        layer: their decoder layer.
        kind: "qkv", "o", "gate_up" or "down".
        linears: their full names.
        weights: how many weights they have.
        costs: method's name in the recipe -> what it does to them.
    """

    layer: int
    kind: str
    linears: tuple[str, ...]
    weights: int
    costs: Mapping[str, Cost]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Unit:
        """Read `dataclasses.asdict` back."""
        costs = {name: Cost(**cost) for name, cost in values["costs"].items()}
        return cls(**{**values, "linears": tuple(values["linears"]), "costs": costs})


@torch.inference_mode()
def measure_sensitivity(
    source_dir: Path,
    work_dir: Path,
    *,
    candidates: Mapping[str, Method | None],
    searched: Set[str],
    calibration: Calibration,
    form: Format,
    machine: Machine,
    events: Progress | None = None,
) -> list[Unit]:
    """Measure every unit of the dense model in `source_dir` under every candidate.

    Killed and called again, it goes on after the last finished layer.

    Args:
        source_dir: a plain model without experts.
        work_dir: keeps the results by layer, for this measurement alone.
        candidates: methods by their names; None leaves the unit as it is.
        searched: full names of the linears that are to be measured; others stay as they are.
        calibration: what flows through the model.
        form: of the checkpoint, which decides the bytes.
        machine: where and within which memory it works.
        events: is told of each layer.

    Raises:
        StoreError: the file system refuses.
        QuantizeError: `work_dir` belongs to another measurement; NaN or Inf after a layer.
    """
    run = _Pass(source_dir, candidates, searched, calibration, form, machine.device)
    work = WorkDir(work_dir, run.fingerprint())
    events = events or Silent()
    files = [work.path / f"units-{layer:05d}.json" for layer in range(run.spec.num_hidden_layers)]
    events.start("search", len(files), "layers", done=sum(file.exists() for file in files))
    if not all(file.exists() for file in files):
        run.enter(machine.hidden_memory, work.path / ".hidden.partial")
    units: list[Unit] = []
    for layer, file in enumerate(files):
        done = file.exists()
        if not done:
            write_text_file(file, json.dumps([asdict(unit) for unit in run.units(layer)]))
        units += [Unit.from_json(values) for values in json.loads(file.read_text(encoding="utf-8"))]
        if not all(later.exists() for later in files[layer + 1 :]):
            run.advance(layer)
        if not done:
            events.advance()
    return units


class _Pass:
    """The calibration set on its way through the source model, from layer to layer."""

    def __init__(
        self,
        source_dir: Path,
        candidates: Mapping[str, Method | None],
        searched: Set[str],
        calibration: Calibration,
        form: Format,
        device: str,
    ) -> None:
        self.spec, self.checkpoint = load_spec(source_dir), Checkpoint.open(source_dir)
        self.candidates, self.searched, self.form = candidates, searched, form
        self.calibration = calibration
        self.device = choose_device(device)
        self.dtype = arithmetic(self.checkpoint.dtype(EMBEDDING), self.device)
        count, length = calibration.tokens.shape
        tables = rotary_tables(self.spec, length, self.dtype)
        self.rotary = (tables[0].to(self.device), tables[1].to(self.device))
        self.measured = max(1, _MEASURED_TOKENS // length)
        size = batch_size(length, self.device)
        self.batches = [slice(at, min(at + size, count)) for at in range(0, count, size)]

    def enter(self, hidden_memory: int | None, file: Path) -> None:
        """Make the hidden states those that enter layer 0, in `file` beyond `hidden_memory` bytes."""
        shape = (*self.calibration.tokens.shape, self.spec.hidden_size)
        spill = hidden_memory is not None and math.prod(shape) * self.dtype.itemsize > hidden_memory
        self.hidden = States(
            shape, self.dtype, device=self.device, batches=self.batches, file=file if spill else None
        )
        embedding_VH = self.checkpoint.view(EMBEDDING)
        for batch in self.batches:
            tokens_BS = self.calibration.tokens[batch]
            self.hidden.values[batch] = F.embedding(tokens_BS, embedding_VH).to(self.dtype)

    def fingerprint(self) -> dict[str, Any]:
        """What the results of an unfinished measurement must agree in."""
        return {
            "state_version": _STATE_VERSION,
            "candidates": {
                name: None if method is None else method.parameters()
                for name, method in self.candidates.items()
            },
            "searched": sorted(self.searched),
            "format": self.form.name,
            "calibration": self.calibration.digest,
            "seed": self.calibration.seed,
            "device": self.device.type,
        }

    def advance(self, index: int) -> None:
        """Let the hidden states go through layer `index`."""
        layer = DecoderLayer(self.spec, index, self._tensors(index)[1])
        for batch, x_BSH in self.hidden:
            self.hidden.write(batch, layer.forward(x_BSH, self.rotary))
        self.hidden.settle()

    def units(self, index: int) -> Iterator[Unit]:
        """Measure the units of layer `index`, whose input the hidden states are."""
        stored, tensors = self._tensors(index)
        layer, prefix = DecoderLayer(self.spec, index, tensors), layer_prefix(index)
        for number, group in enumerate(linear_groups(self.spec, index)):
            names = [name for name in group.members if prefix + name in self.searched]
            if not names:
                continue
            weights = sum(stored[f"{name}.weight"].numel() for name in names)
            answers = self._answers(layer, group, names, stored, (index << 2) + number)
            variants = {
                name: self._variant(index, tensors, self.candidates[name], answer, group)
                for name, answer in answers.items()
            }
            errors = self._errors(layer, group, variants)
            if not all(math.isfinite(error) for error in errors.values()):
                raise QuantizeError(
                    "NaN or Inf after the layer, with these linears quantized",
                    where=", ".join(prefix + name for name in names),
                    why="the calibration set's activations overflow, or the weights are damaged",
                    fix="check the source model's weights, or exclude these linears",
                )
            costs = {}
            for name, method in self.candidates.items():
                answer = answers.get(name)
                if answer is None or method is None:
                    nbytes = sum(stored[f"{linear}.weight"].nbytes for linear in names)
                    costs[name] = Cost(0.0, nbytes)
                else:
                    dtype = stored[f"{names[0]}.weight"].dtype
                    costs[name] = Cost(errors[name], self._nbytes(prefix, answer, method, dtype))
            yield Unit(index, group.kind, tuple(prefix + name for name in names), weights, costs)

    def _tensors(self, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The layer's tensors on the device, as they are stored and as they compute."""
        prefix = layer_prefix(index)
        stored = {
            name: self.checkpoint.read(prefix + name).to(self.device)
            for name in layer_tensors(self.spec, index)
        }
        return stored, {name: tensor.to(self.dtype) for name, tensor in stored.items()}

    def _answers(
        self, layer: DecoderLayer, group: LinearGroup, names: list[str], stored: dict[str, Tensor], seed: int
    ) -> dict[str, QuantizedGroup]:
        """What each method makes of the group, on the inputs that the source gives it."""
        columns = stored[f"{names[0]}.weight"].shape[1]
        methods = {name: method for name, method in self.candidates.items() if method is not None}
        observers = {
            name: method.observe(columns, (self.calibration.seed << 20) + seed, self.device)
            for name, method in methods.items()
            if method.needs_calibration
        }
        if observers:
            for _, x_BSH in self.hidden:
                x_BSI = self._input(layer, group.kind, x_BSH)
                for statistics in observers.values():
                    statistics.update(x_BSI.flatten(0, 1))
        from_norm = group.source.endswith("layernorm")
        whole = from_norm and len(names) == len(group.members)
        share = Group(
            {name: stored[f"{name}.weight"] for name in names},
            {name: stored[f"{name}.bias"] for name in names if f"{name}.bias" in stored},
            stored[f"{group.source}.weight"] if whole else None,
            not from_norm and self.form.holds_pre_quant_scale,
            source_rows=None
            if from_norm or self.form.holds_pre_quant_scale
            else self._source_rows(group.kind, stored[f"{group.source}.weight"].shape[0]),
        )
        return {name: method.quantize(share, observers.get(name)) for name, method in methods.items()}

    def _source_rows(self, kind: str, rows: int) -> Tensor:
        """As in `Group`: the output channel of v_proj or up_proj that each input channel comes from."""
        row_R = torch.arange(rows, device=self.device)
        if kind != "o":
            return row_R
        heads = rows // self.spec.head_dim
        repeats = self.spec.num_attention_heads // heads
        return row_R.view(heads, 1, -1).expand(heads, repeats, -1).flatten()

    def _input(self, layer: DecoderLayer, kind: str, x_BSH: Tensor) -> Tensor:
        """What the group reads."""
        normed_BSH = layer.attention_input(x_BSH)
        if kind == "qkv":
            return normed_BSH
        context_BSQ = layer.attend(normed_BSH, self.rotary)
        if kind == "o":
            return context_BSQ
        normed_BSH = layer.mlp_input(layer.after_attention(x_BSH, context_BSQ))
        return normed_BSH if kind == "gate_up" else layer.activate(normed_BSH)

    def _variant(
        self,
        index: int,
        tensors: dict[str, Tensor],
        method: Method | None,
        answer: QuantizedGroup,
        group: LinearGroup,
    ) -> DecoderLayer:
        """The layer with the group quantized."""
        assert method is not None
        changed, rounded = dict(tensors), {}
        if answer.norm is not None:
            changed[f"{group.source}.weight"] = answer.norm.to(self.device, self.dtype)
        for name, linear in answer.linears.items():
            weight_OI = linear.dequantize().to(self.device)
            if answer.source_scale is not None:  # whose inverse the linear before gives its outputs
                rows_I = self._source_rows(group.kind, len(answer.source_scale))
                weight_OI = weight_OI / answer.source_scale[rows_I]
            changed[f"{name}.weight"] = weight_OI.to(self.dtype)
            rounding = input_rounding(linear, method.scheme.quant_algo)
            if rounding is not None:
                rounded[name] = rounding
        return DecoderLayer(self.spec, index, changed, Simulation(rounded))

    def _errors(
        self, layer: DecoderLayer, group: LinearGroup, variants: Mapping[str, DecoderLayer]
    ) -> dict[str, float]:
        """The mean squared relative difference after the layer that each variant makes."""
        sums = dict.fromkeys(variants, 0.0)
        tokens = 0
        for batch, x_BSH in self.hidden:
            if batch.start >= self.measured:
                break
            halfway_BSH = x_BSH
            context_BSQ = None
            if group.kind != "qkv":
                context_BSQ = layer.attend(layer.attention_input(x_BSH), self.rotary)
                halfway_BSH = layer.after_attention(x_BSH, context_BSQ)
                right_BSH = self._mlp(layer, halfway_BSH).float()
            else:
                right_BSH = layer.forward(x_BSH, self.rotary).float()
            size_BS = right_BSH.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
            for name, variant in variants.items():
                if context_BSQ is None:
                    found_BSH = variant.forward(x_BSH, self.rotary)
                elif group.kind == "o":
                    found_BSH = self._mlp(variant, variant.after_attention(x_BSH, context_BSQ))
                else:
                    found_BSH = self._mlp(variant, halfway_BSH)
                moved_BS = (found_BSH.float() - right_BSH).square().sum(-1)
                sums[name] += float((moved_BS / size_BS).sum())
            tokens += size_BS.numel()
        return {name: total / tokens for name, total in sums.items()}

    @staticmethod
    def _mlp(layer: DecoderLayer, halfway_BSH: Tensor) -> Tensor:
        return layer.after_mlp(halfway_BSH, layer.activate(layer.mlp_input(halfway_BSH)))

    def _nbytes(self, prefix: str, answer: QuantizedGroup, method: Method, dtype: torch.dtype) -> int:
        """What the linears take in the file form, biases apart."""
        return sum(
            tensor.nbytes
            for name, linear in answer.linears.items()
            for full, tensor in self.form.linear_tensors(
                prefix + name, linear.to("cpu"), method.scheme, dtype
            ).items()
            if not full.endswith(".bias")
        )
