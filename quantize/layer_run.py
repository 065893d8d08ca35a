"""The quantization of one decoder layer, group of linears by group of linears.

Every group is quantized on inputs that the groups before it, already quantized, produce. That takes one
forward pass of the layer, in steps, and the gate and up projections once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantize.formats.base import Format
from quantize.kv_cache import KvScales
from quantize.layer import DecoderLayer
from quantize.linear import QuantizedLinear
from quantize.method import Group, Method
from quantize.states import States
from toolchain.errors import QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import LinearGroup, layer_prefix, layer_tensors, linear_groups
from toolchain.model.spec import ModelSpec


@dataclass(frozen=True)
class LayerSettings:
    """What stays the same from layer to layer.

    Args:
        spec: the model's facts.
        checkpoint: the source.
        methods: full module name -> how it is quantized, for each linear that is.
        form: the file form of the output.
        kv_cache: "FP8" or "INT8" where the scales of the cache are measured.
        seed: of the statistics' randomness.
        device: where it is computed.
        dtype: of the forward pass.
        rotary: `rotary_tables` on the device.
    """

    spec: ModelSpec
    checkpoint: Checkpoint
    methods: Mapping[str, Method]
    form: Format
    kv_cache: str | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    rotary: tuple[Tensor, Tensor]


class LayerRun:
    """Decoder layer `index`, on its way to being quantized.

    Attributes:
        finished: the layer's tensors in their stored form, by full name, in host memory.
        report: by full name of each quantized linear, what the method says of it.
    """

    def __init__(self, settings: LayerSettings, index: int) -> None:
        self.settings, self.index = settings, index
        self.prefix = layer_prefix(index)
        source, device = settings.checkpoint, settings.device
        stored = {name: source.read(self.prefix + name) for name in layer_tensors(settings.spec, index)}
        self.finished = {self.prefix + name: tensor for name, tensor in stored.items()}
        self.original = {name: tensor.to(device) for name, tensor in stored.items()}
        self.layer = DecoderLayer(
            settings.spec,
            index,
            {name: tensor.to(settings.dtype) for name, tensor in self.original.items()},
        )
        self.report: dict[str, Any] = {}

    def quantize_weights(self) -> None:
        """Quantize with methods that look at no activations."""
        for group in linear_groups(self.settings.spec, self.index):
            for method, names in self._shares(group):
                self._answer(group, names, method, None)

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
            for batch, x_BSH in hidden:
                x_BSH = layer.after_attention(x_BSH, between.read(batch))
                hidden.write(batch, x_BSH)
                yield layer.mlp_input(x_BSH)

        def activated() -> Iterator[Tensor]:
            for _, x_BSH in hidden:
                yield layer.activate(layer.mlp_input(x_BSH))

        inputs = {"qkv": attention_inputs, "o": contexts, "gate_up": mlp_inputs, "down": activated}
        for number, group in enumerate(linear_groups(self.settings.spec, self.index)):
            self._quantize_group(number, group, inputs[group.kind]())
        finite = _Finite(self.prefix + "mlp.down_proj", "output")
        for batch, x_BSH in hidden:
            x_BSH = layer.after_mlp(x_BSH, layer.activate(layer.mlp_input(x_BSH)))
            finite.see(x_BSH)
            hidden.write(batch, x_BSH)
        hidden.settle()
        finite.check()
        if scales is not None:
            self.finished |= self.settings.form.kv_tensors(self.prefix, *scales.result())

    def _quantize_group(self, number: int, group: LinearGroup, inputs: Iterator[Tensor]) -> None:
        """Show the methods the group's inputs, and put their answers into the layer and into `finished`."""
        settings = self.settings
        seed = (settings.seed << 20) + 4 * self.index + number
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
                    statistics.update(x_BSI.flatten(0, 1))
        finite.check()
        for (method, names), statistics in zip(shares, observers, strict=True):
            self._answer(group, names, method, statistics)

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
        norm = self.original[f"{group.source}.weight"] if from_norm and whole else None
        answer = method.quantize(Group(weights, biases, norm, not from_norm), statistics)
        if answer.norm is not None:
            self.finished[f"{self.prefix}{group.source}.weight"] = answer.norm.cpu()
            self.layer.tensors[f"{group.source}.weight"] = answer.norm.to(self.settings.dtype)
        for name, linear in answer.linears.items():
            self._take(name, linear, method)
        self.report |= {self.prefix + name: dict(facts) for name, facts in answer.report.items()}

    def _take(self, name: str, linear: QuantizedLinear, method: Method) -> None:
        if not linear.scales.isfinite().all():
            raise QuantizeError(
                "the weight holds NaN or Inf", where=self.prefix + name, fix="download the source model again"
            )
        del self.finished[f"{self.prefix}{name}.weight"]
        self.finished |= self.settings.form.linear_tensors(
            self.prefix + name, linear.to("cpu"), method.scheme
        )
        self.layer.tensors[f"{name}.weight"] = linear.dequantize(self.settings.dtype)


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
