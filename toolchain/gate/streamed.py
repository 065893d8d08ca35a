"""A checkpoint, plain or in any quantized form, as a model of which one decoder layer at a time is in memory.

Shapes: N sequences of S tokens; T tokens of one chunk; H hidden_size; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.device import batch_size
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.layer import DecoderLayer, Simulation, linear, rms_norm, rotary_tables
from quantize.linear import QuantizedLinear
from quantize.simulate import cache_rounding, input_rounding
from quantize.states import States
from toolchain.model.families import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    layer_prefix,
    layer_tensors,
    linear_shapes,
)
from toolchain.model.safetensors_file import prefetch
from toolchain.model.spec import load_spec

# Logits of one model that are held at a time: 32 MiB on a CPU, 512 MiB on a GPU.
_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}


class StreamedModel:
    """The model in `directory`, computing on `device` in `dtype`.

    Weights are what the codes stand for; with `simulate`, the inputs of linears whose scheme quantizes
    activations, and the KV cache where its scales are stored, are rounded as an engine rounds them.

    Attributes:
        spec: the model's facts.
        simulated: what was rounded so far, e.g. {"activations as FP8", "KV cache as FP8"}.
        input_scales: the static scales of activations in the layer that was loaded last, by linear.

    Raises:
        ModelError: the checkpoint is damaged, or of a form that is not known.
    """

    def __init__(
        self,
        directory: Path,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        simulate: bool = True,
    ) -> None:
        self.device, self.dtype, self._simulate = device, dtype, simulate
        self.spec = load_spec(directory)
        self.checkpoint = QuantizedCheckpoint.open(directory)
        self.simulated: set[str] = set()
        self.input_scales: dict[str, Tensor] = {}
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(self, tokens_NS: Tensor) -> States:
        """The hidden states that enter the first layer, in host memory."""
        count, length = tokens_NS.shape
        size = batch_size(length, self.device)
        batches = [slice(at, min(at + size, count)) for at in range(0, count, size)]
        hidden = States(
            (count, length, self.spec.hidden_size), self.dtype, device=self.device, batches=batches
        )
        embedding_VH = self.checkpoint.checkpoint.view(EMBEDDING)
        for batch in batches:
            hidden.values[batch] = F.embedding(tokens_NS[batch], embedding_VH).to(self.dtype)
        return hidden

    def layer(self, index: int) -> Callable[[Tensor], Tensor]:
        """The forward pass of a decoder layer, [B, S, H] to [B, S, H]; its weights live as long."""
        layer = self.decoder_layer(index)
        return lambda hidden_BSH: layer.forward(hidden_BSH, self.rotary(hidden_BSH.shape[1]))

    def head(self, twin: Head | None = None) -> Head:
        """Final norm and output embedding; that of `twin` where the two are equal, as they mostly are."""
        checkpoint = self.checkpoint.checkpoint
        name = LM_HEAD if LM_HEAD in checkpoint else EMBEDDING
        norm_H, head_VH = (self._tensor(checkpoint.read(one)) for one in (FINAL_NORM, name))
        if twin is not None and torch.equal(head_VH, twin.embedding):
            head_VH = twin.embedding
        return Head(norm_H, head_VH, self.spec.rms_norm_eps)

    def decoder_layer(self, index: int) -> DecoderLayer:
        """A decoder layer with its weights, for its steps one by one; `rotary` has its tables."""
        self._prefetch(index + 1)
        prefix, linears = layer_prefix(index), linear_shapes(self.spec, index)
        tensors: dict[str, Tensor] = {}
        inputs: dict[str, Callable[[Tensor], Tensor]] = {}
        self.input_scales = {}
        for name in layer_tensors(self.spec, index):
            module = name.removesuffix(".weight")
            own = self.checkpoint.linear(prefix + module) if module in linears else None
            if not isinstance(own, QuantizedLinear):
                tensors[name] = self._tensor(self.checkpoint.read(prefix + name) if own is None else own)
                continue
            if own.input_scale is not None:
                self.input_scales[module] = own.input_scale
            own = own.to(self.device)
            tensors[name] = own.dequantize(self.dtype)
            algo = self.checkpoint.scheme.linears[prefix + module].quant_algo
            rounding = input_rounding(own, algo) if self._simulate else None
            if rounding is not None:
                inputs[module] = rounding
                self.simulated.add(f"activations as {algo}")
        return DecoderLayer(self.spec, index, tensors, Simulation(inputs, self._cache(prefix)))

    def _cache(self, prefix: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None:
        algo = self.checkpoint.kv_cache_quant_algo
        scales = self.checkpoint.kv_scales(prefix) if self._simulate and algo else None
        if algo is None or scales is None:
            return None
        self.simulated.add(f"KV cache as {algo}")
        keys, values = (cache_rounding(algo, scale.to(self.device)) for scale in scales)
        return keys, values

    def _tensor(self, stored: Tensor) -> Tensor:
        return stored.to(self.device).to(self.dtype)

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions of a sequence, see `rotary_tables`."""
        if length not in self._tables:
            cos_SR, sin_SR = rotary_tables(self.spec, length, self.dtype)
            self._tables[length] = cos_SR.to(self.device), sin_SR.to(self.device)
        return self._tables[length]

    def _prefetch(self, index: int) -> None:
        """Ask the kernel to read a layer's weights while the one before it is worked on."""
        checkpoint, prefix = self.checkpoint.checkpoint, layer_prefix(index)
        prefetch(checkpoint.location(name) for name in checkpoint.names if name.startswith(prefix))


@dataclass(frozen=True)
class Head:
    """From hidden states to logits.

    Args:
        norm: [H], weight of the final norm.
        embedding: [V, H], of the output.
        eps: of the norm.
    """

    norm: Tensor
    embedding: Tensor
    eps: float

    def log_probs(self, hidden_TH: Tensor) -> Tensor:
        """float32 [T, V], from hidden states on any device."""
        hidden_TH = hidden_TH.to(self.norm.device, self.norm.dtype)
        logits_TV = linear(rms_norm(hidden_TH, self.norm, self.eps), self.embedding)
        return logits_TV.float().log_softmax(-1)

    def chunks(self, start: int, stop: int) -> Iterator[slice]:
        """Runs of tokens from `start` to `stop`, few enough for the memory that their logits may take."""
        size = max(1, _LOGITS[self.embedding.device.type] // self.embedding.shape[0])
        yield from (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def run_layer(forward: Callable[[Tensor], Tensor], hidden: States) -> bool:
    """What enters a layer becomes what leaves it. Returns whether all of it is finite."""
    sums = []
    for batch, x_BSH in hidden:
        x_BSH = forward(x_BSH)
        sums.append(x_BSH.sum(dtype=torch.float32))
        hidden.write(batch, x_BSH)
    hidden.settle()
    return bool(torch.stack(sums).isfinite().all())
