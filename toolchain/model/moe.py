"""Mixture of experts: its sizes and its routing, from `config.json`."""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.model.config_json import Fields

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
"""The families with routed experts."""


@dataclass(frozen=True)
class MoeSpec:
    """The experts of a model, in Hugging Face's words.

    Args:
        num_experts: routed experts of a sparse layer.
        num_experts_per_tok: how many of them a token goes to.
        moe_intermediate_size: inner width of a routed expert.
        shared_expert_intermediate_size: inner width of the expert that every token goes to; 0 where there
            is none.
        norm_topk_prob: whether the weights of a token's experts are made to sum to 1.
        sparse_layers: one entry a layer: whether it has experts, or a dense MLP.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    norm_topk_prob: bool
    sparse_layers: tuple[bool, ...]


@dataclass(frozen=True)
class _Defaults:
    """What the family's configuration class of transformers 5.23 says where a config is silent."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0


_DEFAULTS = {
    "mixtral": _Defaults(8, 2),
    "qwen2_moe": _Defaults(60, 4, 1408, 5632),
    "qwen3_moe": _Defaults(128, 8, 768),
}


def parse_moe(fields: Fields, family: str, layers: int, intermediate_size: int) -> MoeSpec | None:
    """The experts that a config describes; None for a family without any.

    Args:
        fields: the whole config; what is wrong in it is recorded there.
        family: a value of `toolchain.model.spec.FAMILIES`.
        layers: the number of decoder layers.
        intermediate_size: inner width of a dense MLP; Mixtral's experts have it.
    """
    if family not in FAMILIES:
        return None
    default = _DEFAULTS[family]
    # transformers 5 writes Qwen3's number under Mixtral's name; what is published has `num_experts`.
    local = family != "qwen2_moe" and fields.values.get("num_local_experts") is not None
    experts = fields.integer("num_local_experts" if local else "num_experts", default.num_experts)
    chosen = fields.integer("num_experts_per_tok", default.num_experts_per_tok)
    if not fields.problems and chosen > experts:
        fields.problem("num_experts_per_tok", f"({chosen}) exceeds the {experts} experts that there are")
    if family == "mixtral":
        return MoeSpec(
            experts, chosen, intermediate_size, 0, norm_topk_prob=True, sparse_layers=(True,) * layers
        )
    shared = 0
    if family == "qwen2_moe":
        shared = fields.integer("shared_expert_intermediate_size", default.shared_expert_intermediate_size)
    return MoeSpec(
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=fields.integer("moe_intermediate_size", default.moe_intermediate_size),
        shared_expert_intermediate_size=shared,
        norm_topk_prob=fields.flag("norm_topk_prob", False),
        sparse_layers=_sparse_layers(fields, layers),
    )


def _sparse_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(isinstance(n, bool) or not isinstance(n, int) for n in dense):
        fields.problem("mlp_only_layers", f"must be a list of layer numbers, not {dense!r}")
        dense = []
    return tuple((layer + 1) % step == 0 and layer not in dense for layer in range(layers))
