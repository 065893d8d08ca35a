"""A rank's part of the arithmetic, as TensorRT-LLM divides it, in float32.

Within a stage every rank has its part of each linear: query heads with their keys and values, MLP channels,
experts. What the ranks add to the residual stream is summed over them; the embedding is summed (where it is
cut by vocabulary) or joined, and the logits are joined.

Shapes: B sequences of S tokens; H hidden_size; V vocabulary.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from quantize.layer import DecoderLayer, linear, rms_norm
from quantize.linear import QuantizedLinear
from toolchain.engine.tensorrt.rank import HEAD, LN_F, VOCAB_EMBEDDING, RankFile
from toolchain.engine.tensorrt.verify.halves import attention_update, mlp_update
from toolchain.engine.tensorrt.verify.scales import CACHE
from toolchain.model.families import DENSE_MLP
from toolchain.model.spec import ModelSpec


class ShardedModel:
    """The tensor-parallel ranks of one stage, seen from one of them.

    Args:
        file: the rank's file.
        spec: the model; its windows are those of the source, which a checkpoint does not tell.
        group: the ranks of the stage.
        device: where to compute.
    """

    def __init__(
        self, file: RankFile, spec: ModelSpec, group: dist.ProcessGroup | None, device: torch.device
    ) -> None:
        self.file, self.spec, self.group, self.device = file, spec, group, device
        self.size = file.config.mapping.tp

    def embed(self, tokens_S: Tensor) -> Tensor:
        """The embedding of the tokens, [S, H]."""
        table = self.file.checkpoint.view(VOCAB_EMBEDDING)
        sharding = self.file.config.embedding_sharding
        if sharding is None or self.size == 1:
            return F.embedding(tokens_S, table).float().to(self.device)
        if sharding == 1:
            return self._joined(F.embedding(tokens_S, table).float().to(self.device))
        local_S = tokens_S - self.file.tp_rank * len(table)
        mine_S = (local_S >= 0) & (local_S < len(table))
        found_SH = F.embedding(local_S.where(mine_S, torch.zeros_like(local_S)), table).float()
        return self.summed((found_SH * mine_S.unsqueeze(-1)).to(self.device))

    def layer(self, index: int) -> ShardedLayer:
        """Decoder layer `index`, its weights decoded; they live as long as it."""
        return ShardedLayer(self, index)

    def logits(self, hidden_BSH: Tensor) -> Tensor:
        """float32 [B, S, V], the padding of the vocabulary included."""
        norm_H = self.file.read(LN_F).to(self.device).float()
        head_VH = self.file.read(HEAD).to(self.device).float()
        local_BSV = linear(rms_norm(hidden_BSH, norm_H, self.spec.rms_norm_eps), head_VH)
        return self._joined(local_BSV)

    def summed(self, partial: Tensor) -> Tensor:
        """The sum of what all ranks of the stage have, in `partial`'s place."""
        if self.size > 1:
            dist.all_reduce(partial, group=self.group)
        return partial

    def _joined(self, part: Tensor) -> Tensor:
        """The parts of all ranks, side by side in the last dimension."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)


class ShardedLayer:
    """One decoder layer, of which `model`'s rank has its part.

    Attributes:
        scales: of activations by linear, and of the cache; see `scale_error`.
    """

    def __init__(self, model: ShardedModel, index: int) -> None:
        self._model = model
        stored = model.file.layer(index)
        self.scales = {
            module: float(own.input_scale)
            for module, own in stored.linears.items()
            if isinstance(own, QuantizedLinear) and own.input_scale is not None
        } | {name: float(scale) for name, scale in zip(CACHE, stored.kv_scales or (), strict=False)}
        tensors = {
            f"{module}.weight": _weight(own, model.device) for module, own in stored.linears.items()
        } | {name: tensor.to(model.device).float() for name, tensor in stored.tensors.items()}
        # Every rank has the whole bias of what is summed over ranks; it is to be added once.
        self._biases = [
            tensors.pop(f"{module}.bias", None) for module in ("self_attn.o_proj", DENSE_MLP.down)
        ]
        self._layer = DecoderLayer(model.spec, index, tensors)
        self._layer.mlps = tuple(mlp for mlp in self._layer.mlps if f"{mlp.down}.weight" in tensors)

    def attention(self, hidden_BSH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """What the attention of all ranks adds to the residual stream, [B, S, H]."""
        return self._whole(attention_update(self._layer, hidden_BSH, rotary), self._biases[0])

    def mlp(self, hidden_BSH: Tensor) -> Tensor:
        """What the MLPs of all ranks add to the stream after the attention, [B, S, H]."""
        return self._whole(mlp_update(self._layer, hidden_BSH), self._biases[1])

    def _whole(self, partial_BSH: Tensor, bias_H: Tensor | None) -> Tensor:
        summed_BSH = self._model.summed(partial_BSH)
        return summed_BSH if bias_H is None else summed_BSH + bias_H


def _weight(linear: QuantizedLinear | Tensor, device: torch.device) -> Tensor:
    if isinstance(linear, Tensor):
        return linear.to(device).float()
    return linear.to(device).dequantize()
