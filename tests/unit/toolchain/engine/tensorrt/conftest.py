"""Plain rank checkpoints of tiny models, cut by hand: what the code under test must understand."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

WIDTHS: dict[str, Any] = {
    "vocab_size": 98,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
EXPERTS = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "norm_topk_prob": False,
    },
    "Qwen3Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}


def save_source(directory: Path, family: str, dtype: torch.dtype, **changes: Any) -> Path:
    """A model of transformers with every tensor random, norms and biases included."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**WIDTHS | EXPERTS.get(family, {}) | changes)
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(0, 0.2 if name.endswith("bias") else 0.08)
    model.save_pretrained(directory)
    return directory


def cut_ranks(source: Path, out: Path, tp: int, pp: int, *, ep: int = 1) -> Path:
    """The rank files and `config.json` of an unquantized model, written down from the contract."""
    hf = json.loads((source / "config.json").read_text())
    stored = load_file(source / "model.safetensors")
    out.mkdir()
    count = hf.get("num_local_experts") or hf.get("num_experts")
    for rank in range(tp * pp):
        tensors = dict(_rank(stored, hf, rank % tp, rank // tp, tp, pp, ep, count))
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()},
                  out / f"rank{rank}.safetensors")  # fmt: skip
    rope = hf.get("rope_parameters", {})
    config = {
        "architecture": hf["architectures"][0],
        "dtype": hf["dtype"],
        "norm_epsilon": hf["rms_norm_eps"],
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": rope.get("rope_theta", 10000.0),
        "qk_layernorm": "Qwen3" in hf["architectures"][0],
        "attn_bias": hf.get("attention_bias", hf.get("qkv_bias", "Qwen2" in hf["architectures"][0])),
        "mlp_bias": hf.get("mlp_bias", False),
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "head_size": hf.get("head_dim", 16),
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp,
                    "moe_tp_size": tp // ep, "moe_ep_size": ep},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        **{name: hf[name] for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size", "max_position_embeddings", "hidden_act")},
    }  # fmt: skip
    if count:
        normed = hf.get("norm_topk_prob", True)
        config["moe"] = {
            "num_experts": count,
            "top_k": hf["num_experts_per_tok"],
            "normalization_mode": int(normed),
        }
        config["moe_intermediate_size"] = hf.get("moe_intermediate_size", 0)
        config["moe_shared_expert_intermediate_size"] = hf.get("shared_expert_intermediate_size", 0)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return out


def _rank(
    stored: dict[str, Any], hf: Any, tp_rank: int, stage: int, tp: int, pp: int, ep: int, count: int
) -> Iterator[tuple[str, torch.Tensor]]:
    def rows(tensor: torch.Tensor, parts: int = tp, part: int = tp_rank) -> torch.Tensor:
        return tensor.chunk(parts)[part]

    def columns(tensor: torch.Tensor, parts: int = tp, part: int = tp_rank) -> torch.Tensor:
        return tensor.chunk(parts, dim=1)[part]

    def vocabulary(tensor: torch.Tensor) -> torch.Tensor:
        missing = -len(tensor) % tp
        return rows(torch.cat([tensor, torch.zeros(missing, tensor.shape[1], dtype=tensor.dtype)]))

    heads, head_dim = hf["num_key_value_heads"], hf.get("head_dim") or 16

    def keys(tensor: torch.Tensor) -> torch.Tensor:
        if heads < tp:
            tensor = tensor.unflatten(0, (heads, head_dim)).repeat_interleave(tp // heads, 0).flatten(0, 1)
        return rows(tensor)

    layers = torch.arange(hf["num_hidden_layers"]).tensor_split(pp)[stage].tolist()
    if stage == 0:
        yield "transformer.vocab_embedding.weight", vocabulary(stored["model.embed_tokens.weight"])
    for number, layer in enumerate(layers):
        prefix = f"transformer.layers.{number}."
        own = {
            name.split(".", 3)[3]: tensor
            for name, tensor in stored.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        yield f"{prefix}input_layernorm.weight", own["input_layernorm.weight"]
        yield f"{prefix}post_layernorm.weight", own["post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            names = [f"self_attn.{which}_proj.{kind}" for which in "qkv"]
            if names[0] in own:
                parts = [rows(own[names[0]]), keys(own[names[1]]), keys(own[names[2]])]
                yield f"{prefix}attention.qkv.{kind}", torch.cat(parts)
        yield f"{prefix}attention.dense.weight", columns(own["self_attn.o_proj.weight"])
        if "self_attn.o_proj.bias" in own:
            yield f"{prefix}attention.dense.bias", own["self_attn.o_proj.bias"]
        for which in "qk":
            if f"self_attn.{which}_norm.weight" in own:
                yield f"{prefix}attention.{which}_layernorm.weight", own[f"self_attn.{which}_norm.weight"]
        if "mlp.gate_proj.weight" in own:
            yield f"{prefix}mlp.fc.weight", rows(own["mlp.gate_proj.weight"])
            yield f"{prefix}mlp.gate.weight", rows(own["mlp.up_proj.weight"])
            yield f"{prefix}mlp.proj.weight", columns(own["mlp.down_proj.weight"])
        shared = "mlp.shared_expert."
        if f"{shared}gate_proj.weight" in own:
            parts = [rows(own[f"{shared}{which}_proj.weight"]) for which in ("up", "gate")]
            yield f"{prefix}{shared}fc.weight", torch.cat(parts)
            yield f"{prefix}{shared}proj.weight", columns(own[f"{shared}down_proj.weight"])
        if "mlp.up_proj.bias" in own:
            yield f"{prefix}mlp.fc.bias", rows(own["mlp.gate_proj.bias"])
            yield f"{prefix}mlp.gate.bias", rows(own["mlp.up_proj.bias"])
            yield f"{prefix}mlp.proj.bias", own["mlp.down_proj.bias"]
        if not count:
            continue
        mixtral = "block_sparse_moe.gate.weight" in own
        base = "block_sparse_moe." if mixtral else "mlp."
        gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        yield f"{prefix}mlp.router.weight", own[f"{base}gate.weight"].float()
        if "mlp.shared_expert_gate.weight" in own:
            yield f"{prefix}mlp.shared_expert_gate.weight", own["mlp.shared_expert_gate.weight"]
        share, moe_tp = count // ep, tp // ep
        mine, part = range((tp_rank % ep) * share, (tp_rank % ep + 1) * share), tp_rank // ep
        names = [f"{base}experts.{expert}." for expert in mine]
        fused = [
            torch.cat([rows(own[f"{name}{which}.weight"], moe_tp, part) for which in (up, gate)])
            for name in names
        ]
        yield f"{prefix}mlp.fc.weight", torch.stack(fused)
        downs = [columns(own[f"{name}{down}.weight"], moe_tp, part) for name in names]
        yield f"{prefix}mlp.proj.weight", torch.stack(downs)
    if stage == pp - 1:
        yield "transformer.ln_f.weight", stored["model.norm.weight"]
        yield "lm_head.weight", vocabulary(stored["lm_head.weight"])


Cut = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make_ranks(tmp_path: Path) -> Cut:
    """A function (family, tp, pp, **config) -> the directories of a source and of its ranks."""

    def make(
        family: str, tp: int, pp: int, *, ep: int = 1, dtype: torch.dtype = torch.bfloat16, **changes: Any
    ) -> tuple[Path, Path]:
        number = len(list(tmp_path.iterdir()))
        source = save_source(tmp_path / f"source{number}", family, dtype, **changes)
        return source, cut_ranks(source, tmp_path / f"ranks{number}", tp, pp, ep=ep)

    return make
