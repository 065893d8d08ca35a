"""The decoder-only transformer as an OpenVINO graph, node by node: no tracing, no converter.

The graph is the stateful form that OpenVINO GenAI expects: inputs `input_ids`, `attention_mask`,
`position_ids` (i64 [batch, seq]) and `beam_idx` (i32 [batch]), output `logits` (f32 [batch, seq, vocab]), and
a key and a value state a layer. GenAI's continuous batching rewrites it to paged attention when it loads.
That rewrite recognises shapes of subgraphs, so some expressions here are written the way it looks for:

- it takes the number of key-value heads from the dimension left of the `Unsqueeze` that repeats them;
- it drops the mask and assumes a causal one, **unless** the mask is spelled like gpt-oss's sliding window
  (`_window_mask`); any other spelling of the same window is silently lost;
- GenAI computes logits only where they are needed if the last MatMul feeds the result directly.

Shape suffixes: B batch, S new tokens, T past and new tokens, N heads, K key-value heads, H head size,
D hidden.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import openvino as ov
from numpy.typing import ArrayLike, NDArray
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from toolchain.model.spec import ModelSpec

MASKED = -65504.0
"""Added to a masked score. Large enough to vanish in the softmax, finite when rounded to half precision."""


class Weights(Protocol):
    """Where the graph gets its weights from. Every node returned has element type f32."""

    def vector(self, name: str) -> ov.Node:
        """A one-dimensional tensor: a norm's gain, a bias."""

    def linear(self, module: str, hidden: ov.Node, bias: bool) -> ov.Node:
        """`hidden` [.., in] times the transpose of a weight [out, in], plus its bias: [.., out].

        Args:
            module: the linear.
            hidden: its input.
            bias: whether the config says that it has a bias.
        """

    def rows(self, module: str, indices: ov.Node) -> ov.Node:
        """Rows of the weight of an embedding: [..., in] for `indices` of any shape."""


def build_model(spec: ModelSpec, inv_freq: NDArray[np.float64], weights: Weights) -> ov.Model:
    """The whole model.

    Args:
        spec: what the model is.
        inv_freq: [head_dim / 2], the rotary frequencies.
        weights: gives the nodes of the weights by their Hugging Face names.
    """
    return _Decoder(spec, inv_freq, weights).model()


class _Decoder:
    """Builds one model; holds what the layers share (inputs, masks, rotary tables) while it does."""

    def __init__(self, spec: ModelSpec, inv_freq: NDArray[np.float64], weights: Weights) -> None:
        self.spec, self.weights = spec, weights
        self.input_ids = _parameter("input_ids", ov.Type.i64, [-1, -1])
        self.attention_mask = _parameter("attention_mask", ov.Type.i64, [-1, -1])
        self.position_ids = _parameter("position_ids", ov.Type.i64, [-1, -1])
        self.beam_idx = _parameter("beam_idx", ov.Type.i32, [-1])
        self.sinks: list[ov.Node] = []
        self.variables: list[Variable] = []
        self.cos, self.sin = self._rotary_tables(inv_freq)
        self.masks = {window: self._mask(window) for window in dict.fromkeys(spec.sliding_windows)}
        self.score_scale = ops.constant(
            np.float32(spec.rope.attention_factor**2 / np.sqrt(spec.head_dim)), ov.Type.f32
        )

    def model(self) -> ov.Model:
        spec = self.spec
        hidden_BSD = self.weights.rows("model.embed_tokens", self.input_ids)
        for index in range(spec.num_hidden_layers):
            hidden_BSD = self._layer(hidden_BSD, index)
        hidden_BSD = self._norm(hidden_BSD, "model.norm")
        head = "model.embed_tokens" if spec.tie_word_embeddings else "lm_head"
        result = ops.result(self.weights.linear(head, hidden_BSD, False))
        result.set_friendly_name("logits")
        result.output(0).get_tensor().set_names({"logits"})
        inputs = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        model = ov.Model([result], self.sinks, inputs, self.variables, spec.family)
        return model

    def _layer(self, hidden_BSD: ov.Node, index: int) -> ov.Node:
        prefix = f"model.layers.{index}."
        normed_BSD = self._norm(hidden_BSD, f"{prefix}input_layernorm")
        hidden_BSD = ops.add(hidden_BSD, self._attention(normed_BSD, f"{prefix}self_attn.", index))
        normed_BSD = self._norm(hidden_BSD, f"{prefix}post_attention_layernorm")
        gate = ops.swish(self.weights.linear(f"{prefix}mlp.gate_proj", normed_BSD, self.spec.mlp_bias))
        up = self.weights.linear(f"{prefix}mlp.up_proj", normed_BSD, self.spec.mlp_bias)
        down = self.weights.linear(f"{prefix}mlp.down_proj", ops.multiply(gate, up), self.spec.mlp_bias)
        return ops.add(hidden_BSD, down)

    def _attention(self, hidden_BSD: ov.Node, prefix: str, index: int) -> ov.Node:
        spec = self.spec
        query_BNSH = self._heads(hidden_BSD, f"{prefix}q_proj", spec.num_attention_heads)
        key_BKSH = self._heads(hidden_BSD, f"{prefix}k_proj", spec.num_key_value_heads)
        value_BKSH = self._heads(hidden_BSD, f"{prefix}v_proj", spec.num_key_value_heads)
        if spec.qk_norm:
            query_BNSH = self._norm(query_BNSH, f"{prefix}q_norm")
            key_BKSH = self._norm(key_BKSH, f"{prefix}k_norm")
        key_BNTH = self._repeat_heads(self._with_past(self._rotate(key_BKSH), f"past_key_values.{index}.key"))
        value_BNTH = self._repeat_heads(self._with_past(value_BKSH, f"past_key_values.{index}.value"))
        mixed_BNSH = ops.scaled_dot_product_attention(
            self._rotate(query_BNSH),
            key_BNTH,
            value_BNTH,
            attention_mask=self.masks[spec.sliding_windows[index]],
            scale=self.score_scale,
            causal=False,
        )
        mixed_BSNH = ops.transpose(mixed_BNSH, _i64([0, 2, 1, 3]))
        mixed_BSD = ops.reshape(
            mixed_BSNH, _i64([0, 0, spec.num_attention_heads * spec.head_dim]), special_zero=True
        )
        return self.weights.linear(f"{prefix}o_proj", mixed_BSD, spec.o_bias)

    def _heads(self, hidden_BSD: ov.Node, module: str, heads: int) -> ov.Node:
        """Project and split: [B, heads, S, H]."""
        projected = self.weights.linear(module, hidden_BSD, self.spec.qkv_bias)
        split_BSNH = ops.reshape(projected, _i64([0, 0, heads, self.spec.head_dim]), special_zero=True)
        return ops.transpose(split_BSNH, _i64([0, 2, 1, 3]))

    def _norm(self, hidden: ov.Node, module: str) -> ov.Node:
        """RMSNorm over the last axis, in the spelling that the CPU plugin fuses into one kernel."""
        square = ops.power(hidden, _f32(2.0))
        mean = ops.reduce_mean(square, _i64([-1]), keep_dims=True)
        root = ops.sqrt(ops.add(mean, _f32(self.spec.rms_norm_eps)))
        normed = ops.multiply(hidden, ops.divide(_f32(1.0), root))
        return ops.multiply(normed, self.weights.vector(f"{module}.weight"))

    def _with_past(self, current_BKSH: ov.Node, name: str) -> ov.Node:
        """Append to the state `name` and return all of it: [B, K, T, H]."""
        spec = self.spec
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, spec.num_key_value_heads, -1, spec.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        batch = ops.gather(ops.shape_of(self.input_ids), _i64([0]), _i64(0))
        # The sequence axis must be a static zero for the paged rewrite to recognise an empty past.
        shape = ops.concat([batch, _i64([spec.num_key_value_heads]), _i64([0]), _i64([spec.head_dim])], 0)
        past = ops.read_value(ops.broadcast(_f32(0.0), shape), variable)
        whole = ops.concat([ops.gather(past, self.beam_idx, _i64(0)), current_BKSH], 2)
        self.sinks.append(ops.assign(whole, variable))
        self.variables.append(variable)
        return whole

    def _repeat_heads(self, state_BKTH: ov.Node) -> ov.Node:
        """[B, K, T, H] to [B, N, T, H]: each key-value head serves N / K query heads in a row."""
        spec = self.spec
        repeats = spec.num_attention_heads // spec.num_key_value_heads
        if repeats == 1:
            return state_BKTH
        repeated = ops.broadcast(
            ops.unsqueeze(state_BKTH, _i64(2)), _i64([1, 1, repeats, 1, 1]), broadcast_spec="BIDIRECTIONAL"
        )
        return ops.reshape(
            repeated, _i64([0, spec.num_attention_heads, -1, spec.head_dim]), special_zero=True
        )

    def _rotary_tables(self, inv_freq: NDArray[np.float64]) -> tuple[ov.Node, ov.Node]:
        """Cosine and sine [B, 1, S, H] of every new position; each frequency appears in both halves."""
        frequency = ops.constant(inv_freq.astype(np.float32).reshape(1, -1, 1))
        position_B1S = ops.unsqueeze(ops.convert(self.position_ids, ov.Type.f32), _i64(1))
        angle_BSH = ops.transpose(ops.multiply(frequency, position_B1S), _i64([0, 2, 1]))
        angle_B1SH = ops.unsqueeze(ops.concat([angle_BSH, angle_BSH], -1), _i64(1))
        return ops.cos(angle_B1SH), ops.sin(angle_B1SH)

    def _rotate(self, heads_BNSH: ov.Node) -> ov.Node:
        """Rotary embedding in the half-split layout: x * cos + (-x2, x1) * sin."""
        half, whole = self.spec.head_dim // 2, self.spec.head_dim
        first = ops.slice(heads_BNSH, _i64([0]), _i64([half]), _i64([1]), _i64([3]))
        second = ops.slice(heads_BNSH, _i64([half]), _i64([whole]), _i64([1]), _i64([3]))
        turned = ops.concat([ops.multiply(second, _f32(-1.0)), first], -1)
        return ops.add(ops.multiply(heads_BNSH, self.cos), ops.multiply(turned, self.sin))

    def _mask(self, window: int | None) -> ov.Node:
        """What is added to the scores [B, 1, S, T] of a layer that sees `window` tokens (None: all)."""
        new = ops.gather(ops.shape_of(self.input_ids), _i64(1), _i64(0))
        total = ops.gather(ops.shape_of(self.attention_mask), _i64(1), _i64(0))
        key_T = ops.range(_i64(0), total, _i64(1), output_type="i64")
        query_S = ops.range(ops.subtract(total, new), total, _i64(1), output_type="i64")
        key_11T = ops.unsqueeze(key_T, _i64([0, 1, 2]))
        query_S1 = ops.unsqueeze(query_S, _i64([0, 1, 3]))
        causal = ops.less_equal(key_11T, query_S1)
        present = ops.unsqueeze(ops.convert(self.attention_mask, ov.Type.boolean), _i64([1, 2]))
        if window is None:
            visible = ops.bitwise_and(causal, present)
        else:
            # The spelling that the paged rewrite knows; gpt-oss has conditions of its own for `always`.
            always = ops.constant(np.array(True))
            recent = ops.greater(key_11T, ops.add(query_S1, _i64(-window)))
            nearby = ops.bitwise_and(ops.bitwise_and(always, recent), always)
            visible = ops.bitwise_and(ops.bitwise_and(causal, nearby), present)
        batch = ops.gather(ops.shape_of(self.input_ids), _i64([0]), _i64(0))
        shape = ops.concat([batch, _i64([1]), ops.unsqueeze(new, _i64(0)), ops.unsqueeze(total, _i64(0))], 0)
        bias = ops.select(
            ops.broadcast(visible, shape, broadcast_spec="BIDIRECTIONAL"), _f32(0.0), _f32(MASKED)
        )
        # Slicing off nothing: part of the spelling.
        return ops.slice(bias, _i64([0]), ops.unsqueeze(total, _i64(0)), _i64([1]), _i64([3]))


def _parameter(name: str, element_type: ov.Type, shape: list[int]) -> ov.Node:
    """A graph input. The paged rewrite looks for both the node's and the tensor's name."""
    parameter = ops.parameter(ov.PartialShape(shape), element_type)
    parameter.set_friendly_name(name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _i64(value: ArrayLike) -> ov.Node:
    return ops.constant(np.asarray(value, dtype=np.int64))


def _f32(value: float) -> ov.Node:
    return ops.constant(np.float32(value), ov.Type.f32)
