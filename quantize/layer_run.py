"""The quantization of one decoder layer, group of linears by group of linears.

Every group is quantized on inputs that the groups before it, already quantized, produce. That takes one
forward pass of the layer, in steps, and the gate and up projections once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantize.experts import ExpertsRun, scaled
from quantize.formats.base import Format
from quantize.kv_cache import KvScales
from quantize.layer import DecoderLayer
from quantize.linear import QuantizedLinear
from quantize.methods.base import Group, Method
from quantize.read_ahead import ReadAhead
from quantize.states import States
from toolchain.errors import QuantizeError
from toolchain.model.families import (
    ATTENTION_GROUPS,
    DENSE_MLP,
    LinearGroup,
    Mlp,
    layer_prefix,
    layer_tensors,
    mlp_groups,
)
from toolchain.model.spec import ModelSpec


@dataclass(frozen=True)
class LayerSettings:
    """What stays the same from layer to layer.

    Args:
        spec: the model's facts.
        source: the model's tensors.
        methods: full module name -> how it is quantized, for each linear that is.
        form: the file form of the output.
        kv_cache: "FP8" or "INT8" where the scales of the cache are measured.
        seed: of the statistics' randomness.
        device: where it is computed.
        dtype: of the forward pass.
        rotary: `rotary_tables` on the device.
    """

    spec: ModelSpec
    source: ReadAhead
    methods: Mapping[str, Method]
    form: Format
    kv_cache: str | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    rotary: tuple[Tensor, Tensor]


# Linears whose output channels a later one may scale.
_SOURCES = ("self_attn.v_proj", "mlp.up_proj")


class LayerRun:
    """Decoder layer `index`, on its way to being quantized.

    Attributes:
        finished: the layer's tensors in their stored form, by full name, in host memory.
        report: by full name of each quantized linear, what the method says of it.
        notes: lines that a user would want to read.
        original: the tensors on the device, by name relative to the layer; of routed experts, those held.
        expert_scale: [in], what the input channels of all experts' gate and up projections are multiplied by.
        context_scale: [in], what a scale folded into v_proj makes of the inputs of o_proj.
    """

    def __init__(self, settings: LayerSettings, index: int) -> None:
        self.settings, self.index = settings, index
        self.prefix = layer_prefix(index)
        self.layer = DecoderLayer(settings.spec, index, {})
        self.finished: dict[str, Tensor] = {}
        self.original: dict[str, Tensor] = {}
        self.report: dict[str, Any] = {}
        self.notes: list[str] = []
        self.expert_scale: Tensor | None = None
        self.context_scale: Tensor | None = None
        self._taken: dict[str, tuple[QuantizedLinear, Method]] = {}
        routed = {name for mlp in self.layer.mlps if mlp.expert is not None for name in _weights(mlp)}
        for name in layer_tensors(settings.spec, index):
            if name not in routed:
                self.replace(name, settings.source.read(self.prefix + name))

    def quantize_weights(self) -> None:
        """Quantize with methods that look at no activations."""
        for group in ATTENTION_GROUPS:
            self._answer_all(group)
        for mlp in self.layer.mlps:
            with self.holding(mlp):
                for group in mlp_groups(mlp):
                    self._answer_all(group)

    def quantize(self, hidden: States, between: States, before_overwriting: Callable[[], None]) -> None:
        """Quantize; what enters the layer becomes what leaves it.

        Args:
            hidden: what enters the layer; overwritten after `before_overwriting` has returned.
            between: space for the attention context.
            before_overwriting: is called before `hidden` is.
        """
        layer, rotary = self.layer, self.settings.rotary
        scales = KvScales(self.settings.kv_cache) if self.settings.kv_cache else None
        see_cached = None if scales is None else scales.update
        channels = self.settings.spec.num_attention_heads * self.settings.spec.head_dim

        def attention_inputs() -> Iterator[Tensor]:
            for _, x_BSH in hidden:
                yield layer.attention_input(x_BSH)

        def contexts() -> Iterator[Tensor]:
            for batch, x_BSH in hidden:
                context_BSQ = layer.attend(layer.attention_input(x_BSH), rotary, see_cached)
                between.write(batch, context_BSQ)
                yield context_BSQ

        def mlp_inputs() -> Iterator[Tensor]:
            before_overwriting()
            for (batch, x_BSH), (_, context_BSC) in zip(hidden, between, strict=True):
                context_BSQ = context_BSC[..., :channels]
                if self.context_scale is not None:  # v_proj has been scaled since
                    context_BSQ = context_BSQ * self.context_scale.to(context_BSQ.dtype)
                x_BSH = layer.after_attention(x_BSH, context_BSQ)
                hidden.write(batch, x_BSH)
                yield layer.mlp_input(x_BSH)

        def activated() -> Iterator[Tensor]:
            for _, x_BSH in hidden:
                yield layer.activate(layer.mlp_input(x_BSH))

        qkv, o = ATTENTION_GROUPS
        self.quantize_group(qkv, attention_inputs())
        self.quantize_group(o, contexts())
        finite = _Finite(self.prefix + layer.mlps[-1].down, "output")
        if layer.sparse:
            ExpertsRun(self, hidden, between).quantize(mlp_inputs())
            for _, x_BSH in hidden:
                finite.see(x_BSH)
        else:
            gate_up, down = mlp_groups(DENSE_MLP)
            self.quantize_group(gate_up, mlp_inputs())
            self.quantize_group(down, activated())
            for batch, x_BSH in hidden:
                x_BSH = layer.after_mlp(x_BSH, layer.activate(layer.mlp_input(x_BSH)))
                finite.see(x_BSH)
                hidden.write(batch, x_BSH)
        hidden.settle()
        finite.check()
        if scales is not None:
            self.finished |= self.settings.form.kv_tensors(self.prefix, *scales.result())

    @contextmanager
    def holding(self, mlp: Mlp) -> Iterator[None]:
        """The weights of an MLP in memory: those of a routed expert are there only as long as this lasts."""
        if mlp.expert is None:
            yield
            return
        for name in _weights(mlp):
            self.replace(name, self.settings.source.read(self.prefix + name))
        if self.expert_scale is not None:
            for module in (mlp.gate, mlp.up):
                weight_OI = self.original[f"{module}.weight"]
                self.replace(f"{module}.weight", scaled(weight_OI, self.expert_scale))
        yield
        for name in _weights(mlp):
            del self.original[name], self.layer.tensors[name]

    def weight(self, module: str) -> Tensor:
        """The weight [out, in] of a linear as the source has it, on the device, held or not."""
        name = f"{module}.weight"
        if name in self.original:
            return self.original[name]
        return self.settings.source.read(self.prefix + name).to(self.settings.device)

    def replace(self, name: str, tensor: Tensor) -> None:
        """Let `tensor` be the layer's tensor `name`, in its stored form."""
        self.finished[self.prefix + name] = tensor.cpu()
        self.original[name] = tensor.to(self.settings.device)
        self.layer.tensors[name] = self.original[name].to(self.settings.dtype)

    def seed(self, kind: str, expert: int | None = None) -> int:
        """Of the statistics of a group's inputs."""
        number = 4 * self.index + ("qkv", "o", "gate_up", "down").index(kind)
        return (0 if expert is None else (expert + 1) << 44) + (self.settings.seed << 20) + number

    def quantize_group(self, group: LinearGroup, inputs: Iterator[Tensor]) -> None:
        """Show the methods the group's inputs, and put their answers into the layer and into `finished`."""
        settings = self.settings
        seed = self.seed(group.kind, group.expert)
        in_features = self.original[f"{group.members[0]}.weight"].shape[1]
        shares = self._shares(group)
        observers = [
            method.observe(in_features, seed, settings.device) if method.needs_calibration else None
            for method, _ in shares
        ]
        finite = _Finite(self.prefix + group.members[0], "input")
        for x_BSI in inputs:
            finite.see(x_BSI)
            for statistics in observers:
                if statistics is not None:
                    statistics.update(x_BSI.flatten(0, -2))
        finite.check()
        for (method, names), statistics in zip(shares, observers, strict=True):
            self._answer(group, names, method, statistics)

    def _answer_all(self, group: LinearGroup) -> None:
        for method, names in self._shares(group):
            self._answer(group, names, method, None)

    def _shares(self, group: LinearGroup) -> list[tuple[Method, list[str]]]:
        """The group's members by the method that quantizes them."""
        shares: dict[Method, list[str]] = {}
        for name in group.members:
            method = self.settings.methods.get(self.prefix + name)
            if method is not None:
                shares.setdefault(method, []).append(name)
        return list(shares.items())

    def _answer(self, group: LinearGroup, names: list[str], method: Method, statistics: Any) -> None:
        """Let the method quantize its share of the group; take over what it says."""
        from_norm = group.source.endswith("layernorm")
        whole = len(names) == len(group.members)
        weights = {name: self.original[f"{name}.weight"] for name in names}
        biases = {name: self.original[f"{name}.bias"] for name in names if f"{name}.bias" in self.original}
        # What goes into the norm before experts is for all of them: see `ExpertsRun`.
        own_norm = from_norm and whole and not (group.kind == "gate_up" and self.layer.sparse)
        norm = self.original[f"{group.source}.weight"] if own_norm else None
        beside = not from_norm and self.settings.form.holds_pre_quant_scale
        share = Group(
            weights,
            biases,
            norm,
            beside,
            shared_scale=group.expert is not None,
            source_rows=None if from_norm or beside else self._source_rows(group),
        )
        answer = method.quantize(share, statistics)
        if answer.norm is not None:
            self.replace(f"{group.source}.weight", answer.norm)
        if answer.source_scale is not None:
            self._divide_rows(group.source, answer.source_scale)
            if share.source_rows is not None and group.kind == "o":
                self.context_scale = answer.source_scale[share.source_rows].reciprocal()
        for name, linear in answer.linears.items():
            self._take(name, linear, method)
        self.report |= {self.prefix + name: dict(facts) for name, facts in answer.report.items()}

    def _take(self, name: str, linear: QuantizedLinear, method: Method) -> None:
        if not linear.scales.isfinite().all():
            raise QuantizeError(
                "the weight holds NaN or Inf", where=self.prefix + name, fix="download the source model again"
            )
        self.finished.pop(f"{self.prefix}{name}.weight", None)
        dtype = self.original[f"{name}.weight"].dtype
        tensors = self.settings.form.linear_tensors(self.prefix + name, linear, method.scheme, dtype)
        self.finished |= {full_name: tensor.cpu() for full_name, tensor in tensors.items()}
        self.layer.tensors[f"{name}.weight"] = linear.dequantize(self.settings.dtype)
        if name in _SOURCES:
            self._taken[name] = linear, method

    def _source_rows(self, group: LinearGroup) -> Tensor | None:
        """As in `Group`; None where the linear before cannot be scaled row by row and stay what it is."""
        if group.source not in _SOURCES or (group.kind == "o" and self.settings.kv_cache is not None):
            return None  # with a quantized cache, the scales of its values have been measured
        if group.source in self._taken:
            linear, _ = self._taken[group.source]
            if linear.is_fp4 or linear.scales.shape[0] != linear.out_features:
                return None
        rows = self.original[f"{group.source}.weight"].shape[0]
        row_R = torch.arange(rows, device=self.settings.device)
        if group.kind != "o":
            return row_R
        heads = rows // self.settings.spec.head_dim
        repeats = self.settings.spec.num_attention_heads // heads
        return row_R.view(heads, 1, -1).expand(heads, repeats, -1).flatten()

    def _divide_rows(self, module: str, scale_R: Tensor) -> None:
        """Divide the output channels of a linear, quantized or not, by powers of two."""
        bias = self.original.get(f"{module}.bias")
        if bias is not None:
            bias = (bias.float() / scale_R).to(bias.dtype)
            self.replace(f"{module}.bias", bias)
        if module in self._taken:
            linear, method = self._taken[module]
            self._take(
                module, replace(linear, scales=linear.scales / scale_R.unsqueeze(1), bias=bias), method
            )
        else:
            weight_OI = self.original[f"{module}.weight"]
            divided_OI = (weight_OI.float() / scale_R.unsqueeze(1)).to(weight_OI.dtype)
            self.replace(f"{module}.weight", divided_OI)


def _weights(mlp: Mlp) -> tuple[str, str, str]:
    return f"{mlp.gate}.weight", f"{mlp.up}.weight", f"{mlp.down}.weight"


class _Finite:
    """Remembers whether every value of many tensors is finite, and asks the device once."""

    def __init__(self, module: str, side: str) -> None:
        self.module, self.side = module, side
        self._sums: list[Tensor] = []

    def see(self, x: Tensor) -> None:
        """Any NaN or Inf makes the sum NaN or Inf."""
        self._sums.append(x.sum(dtype=torch.float32))

    def check(self) -> None:
        """Raise QuantizeError if one was not."""
        if self._sums and not torch.stack(self._sums).isfinite().all():
            raise QuantizeError(
                f"NaN or Inf in the {self.side} of the module",
                where=self.module,
                why="the calibration set's activations overflow, or the weights before it are damaged",
                fix="check the source model's weights; a bfloat16 model cast to float16 overflows like this",
            )
