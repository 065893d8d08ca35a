"""One decoder layer of the Llama, Mistral, Qwen2 and Qwen3 families, as a sequence of plain functions.

The steps end where a quantizer wants to look: at the input of each group of linears. Run one after the
other they are the layer's forward pass, in the arithmetic of `transformers`: matrix products in the dtype
of the tensors, norms and the softmax in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain.model.spec import ModelSpec


class DecoderLayer:
    """The tensors of decoder layer `index`, and its forward pass in five steps.

    Args:
        spec: the model's facts.
        index: which layer; it decides the attention window.
        tensors: name without the layer's prefix -> tensor, all of one float dtype. The steps look tensors
            up when they run, so a caller may replace them between steps.

    Shapes: B sequences of S tokens; H hidden_size; Q all query heads' and F the mlp's channels.
    """

    def __init__(self, spec: ModelSpec, index: int, tensors: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.window = spec.sliding_windows[index]
        self.tensors = dict(tensors)

    def attention_input(self, hidden_BSH: Tensor) -> Tensor:
        """What q_proj, k_proj and v_proj read, [B, S, H]."""
        return self._norm("input_layernorm", hidden_BSH)

    def attend(
        self,
        normed_BSH: Tensor,
        rotary: tuple[Tensor, Tensor],
        see_cached: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """What o_proj reads, [B, S, Q]; `rotary` from `rotary_tables`.

        `see_cached` is shown the keys and values [B, heads, S, D] as a cache holds them.
        """
        q_BNSD = self._heads("q", normed_BSH)
        k_BNSD = self._heads("k", normed_BSH)
        v_BNSD = self._heads("v", normed_BSH)
        q_BNSD, k_BNSD = _rotate(q_BNSD, *rotary), _rotate(k_BNSD, *rotary)
        if see_cached is not None:
            see_cached(k_BNSD, v_BNSD)
        mask_SS = _window_mask(normed_BSH.shape[1], self.window, normed_BSH.device)
        context_BNSD = F.scaled_dot_product_attention(
            q_BNSD, k_BNSD, v_BNSD, attn_mask=mask_SS, is_causal=mask_SS is None, enable_gqa=True
        )
        return context_BNSD.transpose(1, 2).flatten(2)

    def after_attention(self, hidden_BSH: Tensor, context_BSQ: Tensor) -> Tensor:
        """The residual stream after the attention half, [B, S, H]."""
        return hidden_BSH + self._linear("self_attn.o_proj", context_BSQ)

    def mlp_input(self, hidden_BSH: Tensor) -> Tensor:
        """What gate_proj and up_proj read, [B, S, H]."""
        return self._norm("post_attention_layernorm", hidden_BSH)

    def activate(self, normed_BSH: Tensor) -> Tensor:
        """What down_proj reads, [B, S, F]: SwiGLU."""
        gate_BSF = F.silu(self._linear("mlp.gate_proj", normed_BSH), inplace=True)
        return gate_BSF.mul_(self._linear("mlp.up_proj", normed_BSH))

    def after_mlp(self, hidden_BSH: Tensor, activated_BSF: Tensor) -> Tensor:
        """The residual stream after the layer, [B, S, H]."""
        return hidden_BSH + self._linear("mlp.down_proj", activated_BSF)

    def forward(self, hidden_BSH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """The whole layer: [B, S, H] to [B, S, H]."""
        hidden_BSH = self.after_attention(hidden_BSH, self.attend(self.attention_input(hidden_BSH), rotary))
        return self.after_mlp(hidden_BSH, self.activate(self.mlp_input(hidden_BSH)))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return rms_norm(x, self.tensors[f"{name}.weight"], self.spec.rms_norm_eps)

    def _heads(self, which: str, normed_BSH: Tensor) -> Tensor:
        """The q, k or v projection split into heads, [B, heads, S, head_dim]."""
        projected_BSO = self._linear(f"self_attn.{which}_proj", normed_BSH)
        heads_BSND = projected_BSO.view(*normed_BSH.shape[:2], -1, self.spec.head_dim)
        if self.spec.qk_norm and which != "v":
            heads_BSND = self._norm(f"self_attn.{which}_norm", heads_BSND)
        return heads_BSND.transpose(1, 2)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, in float32, rounded to the dtype of `x` before the weight."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    exact = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + eps)
    return weight * exact.to(x.dtype)


def rotary_tables(spec: ModelSpec, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of positions 0 .. length - 1, each [length, rotary_dim], the halves repeated."""
    frequencies_R = torch.from_numpy(spec.rope.inv_freq(length)).float()
    angles_SR = torch.outer(torch.arange(length).float(), frequencies_R).repeat(1, 2)
    factor = spec.rope.attention_factor
    return (angles_SR.cos() * factor).to(dtype), (angles_SR.sin() * factor).to(dtype)


def _rotate(heads_BNSD: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Apply RoPE to the first `rotary_dim` channels of each head."""
    rotary_dim = cos_SR.shape[1]
    turning, still = heads_BNSD[..., :rotary_dim], heads_BNSD[..., rotary_dim:]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos_SR + torch.cat((-second, first), dim=-1) * sin_SR
    return torch.cat((turned, still), dim=-1) if still.shape[-1] else turned


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """bool [S, S], True where a token may look: the last `window` tokens; None where causal is enough."""
    if window is None or length <= window:
        return None
    ones_SS = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones_SS.tril() & ones_SS.triu(1 - window)
