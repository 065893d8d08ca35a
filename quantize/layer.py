"""One decoder layer of the supported families, dense or with experts, as a sequence of plain functions.

The steps end where a quantizer wants to look: at the input of each group of linears. Run one after the
other they are the layer's forward pass, in the arithmetic of `transformers`: matrix products in the dtype
of the tensors, norms and the softmax in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.device import multiplies
from toolchain.model.families import DENSE_MLP, Mlp, layer_mlps, routers
from toolchain.model.spec import ModelSpec


@dataclass(frozen=True)
class Routing:
    """Which experts each of T tokens goes to, and what their answers weigh.

    Attributes:
        experts: int64 [T, K], the numbers of the K routed experts of each token.
        weights: [T, K].
        shared: [T], the weight of the shared expert; None where there is none.
    """

    experts: Tensor
    weights: Tensor
    shared: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Routing]) -> Routing:
        """The routing of all tokens from that of consecutive parts."""
        shared = [part.shared for part in parts if part.shared is not None]
        return cls(
            torch.cat([part.experts for part in parts]),
            torch.cat([part.weights for part in parts]),
            torch.cat(shared) if shared else None,
        )

    def cpu(self) -> Routing:
        """The same in host memory."""
        shared = None if self.shared is None else self.shared.cpu()
        return Routing(self.experts.cpu(), self.weights.cpu(), shared)

    def of(self, mlp: Mlp) -> tuple[Tensor, Tensor]:
        """The tokens that go to `mlp`, int64 [E] in rising order, and what its answers weigh, [E]."""
        if mlp.expert is None:
            assert self.shared is not None
            return torch.arange(len(self.shared), device=self.shared.device), self.shared
        tokens_E, places_E = torch.where(self.experts == mlp.expert)
        return tokens_E, self.weights[tokens_E, places_E]


@dataclass(frozen=True)
class Simulation:
    """What an engine rounds on the way through a layer, besides the weights. See `quantize.simulate`.

    Args:
        inputs: by linear, what its kernel makes of the input; linears that are not named read it as it is.
        cache: what the cache makes of keys and of values; None where it holds them as they are.
    """

    inputs: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    cache: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None


class DecoderLayer:
    """The tensors of decoder layer `index`, and its forward pass in steps.

    A dense layer takes `attention_input`, `attend`, `after_attention`, `mlp_input`, `activate` and
    `after_mlp`. After `mlp_input` a sparse one takes `route`, then for each of its `mlps`, on the tokens that
    go to it, `activate` and `answer`: the residual stream grows by the sum of the answers.

    Args:
        spec: the model's facts.
        index: which layer; it decides the attention window.
        tensors: name without the layer's prefix -> tensor, all of one float dtype. The steps look tensors
            up when they run, so a caller may replace them between steps.
        simulation: what is rounded on the way; nothing by default.

    Attributes:
        mlps: the MLPs, by the names of their tensors.

    Shapes: B sequences of S tokens, or T tokens without regard to sequences; H hidden_size; Q all query
    heads' and F an MLP's channels.
    """

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        tensors: Mapping[str, Tensor],
        simulation: Simulation = Simulation(),
    ) -> None:
        self.spec, self.simulation = spec, simulation
        self.sparse = spec.is_sparse(index)
        self.mlps = layer_mlps(spec, index)
        self.window = spec.sliding_windows[index]
        self._routers = tuple(routers(spec, index))
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
        if self.simulation.cache is not None:
            keys, values = self.simulation.cache
            k_BNSD, v_BNSD = keys(k_BNSD), values(v_BNSD)
        mask_SS = _window_mask(normed_BSH.shape[1], self.window, normed_BSH.device)
        dtype = q_BNSD.dtype
        if not multiplies(q_BNSD):
            q_BNSD, k_BNSD, v_BNSD = q_BNSD.float(), k_BNSD.float(), v_BNSD.float()
        context_BNSD = F.scaled_dot_product_attention(
            q_BNSD, k_BNSD, v_BNSD, attn_mask=mask_SS, is_causal=mask_SS is None, enable_gqa=True
        )
        return context_BNSD.to(dtype).transpose(1, 2).flatten(2)

    def after_attention(self, hidden_BSH: Tensor, context_BSQ: Tensor) -> Tensor:
        """The residual stream after the attention half, [B, S, H]."""
        return hidden_BSH + self._linear("self_attn.o_proj", context_BSQ)

    def mlp_input(self, hidden: Tensor) -> Tensor:
        """What the MLPs and the routers read, [..., H]."""
        return self._norm("post_attention_layernorm", hidden)

    def activate(self, normed: Tensor, mlp: Mlp = DENSE_MLP) -> Tensor:
        """What the down projection of `mlp` reads, [..., F]: SwiGLU."""
        gate = F.silu(self._linear(mlp.gate, normed), inplace=True)
        return gate.mul_(self._linear(mlp.up, normed))

    def after_mlp(self, hidden_BSH: Tensor, activated_BSF: Tensor) -> Tensor:
        """The residual stream after a dense layer, [B, S, H]."""
        return hidden_BSH + self._linear(DENSE_MLP.down, activated_BSF)

    def route(self, normed_TH: Tensor) -> Routing:
        """Choose the experts of each token, in float32, as they come out of the router's softmax."""
        moe, (router, *shared_gate) = self.spec.moe, self._routers
        assert moe is not None
        logits_TX = self._linear(router, normed_TH)
        exact = torch.promote_types(logits_TX.dtype, torch.float32)
        weights_TK, experts_TK = logits_TX.softmax(-1, dtype=exact).topk(moe.num_experts_per_tok)
        if moe.norm_topk_prob:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        if self.spec.family != "mixtral":  # Mixtral weighs in float32
            weights_TK = weights_TK.to(logits_TX.dtype)
        shared_T = self._linear(shared_gate[0], normed_TH).sigmoid().squeeze(-1) if shared_gate else None
        return Routing(experts_TK, weights_TK, shared_T)

    def answer(self, activated_EF: Tensor, weights_E: Tensor, mlp: Mlp) -> Tensor:
        """What an expert adds to the residual stream of its tokens, [E, H]; `weights_E` from the routing."""
        answer_EH = self._linear(mlp.down, activated_EF)
        return (answer_EH * weights_E.unsqueeze(-1)).to(answer_EH.dtype)

    def after_experts(self, hidden_BSH: Tensor) -> Tensor:
        """The residual stream after a sparse layer, [B, S, H], from the stream after its attention."""
        return hidden_BSH + self.sum_of_answers(hidden_BSH)

    def sum_of_answers(self, hidden_BSH: Tensor) -> Tensor:
        """What the experts together add to the residual stream, [B, S, H]: those among `mlps`."""
        normed_TH = self.mlp_input(hidden_BSH).flatten(0, 1)
        routing = self.route(normed_TH)
        sum_TH = torch.zeros_like(normed_TH)
        for mlp in self.mlps:
            tokens_E, weights_E = routing.of(mlp)
            answer_EH = self.answer(self.activate(normed_TH[tokens_E], mlp), weights_E, mlp)
            sum_TH.index_add_(0, tokens_E, answer_EH)
        return sum_TH.view_as(hidden_BSH)

    def forward(self, hidden_BSH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """The whole layer: [B, S, H] to [B, S, H]."""
        hidden_BSH = self.after_attention(hidden_BSH, self.attend(self.attention_input(hidden_BSH), rotary))
        if self.sparse:
            return self.after_experts(hidden_BSH)
        return self.after_mlp(hidden_BSH, self.activate(self.mlp_input(hidden_BSH)))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        rounded = self.simulation.inputs.get(name)
        if rounded is not None:
            x = rounded(x)
        return linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return rms_norm(x, self.tensors[f"{name}.weight"], self.spec.rms_norm_eps)

    def _heads(self, which: str, normed_BSH: Tensor) -> Tensor:
        """The q, k or v projection split into heads, [B, heads, S, head_dim]."""
        projected_BSO = self._linear(f"self_attn.{which}_proj", normed_BSH)
        heads_BSND = projected_BSO.view(*normed_BSH.shape[:2], -1, self.spec.head_dim)
        if self.spec.qk_norm and which != "v":
            heads_BSND = self._norm(f"self_attn.{which}_norm", heads_BSND)
        return heads_BSND.transpose(1, 2)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b, in the dtype of x.

    Where the device has no instructions for 16-bit products, they are summed in float32 and rounded once,
    which is what those instructions do.
    """
    if multiplies(x):
        return F.linear(x, weight_OI, bias_O)
    bias_O = None if bias_O is None else bias_O.float()
    return F.linear(x.float(), weight_OI.float(), bias_O).to(x.dtype)


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
