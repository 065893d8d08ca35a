"""What the server needs to follow guides (JSON schema, regex, grammar): the vocabulary, and what tries them.

A guide that does not compile would end every request of the engine's step, so the server has it compiled by a
model of one narrow layer first, in a process of its own; see `deploy/triton_repo/openvino/tensorrt_llm`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from quantize.formats.tensorfile import StoredTensor, write_tensor_file
from toolchain.engine.openvino.export import build_ir
from toolchain.engine.openvino.tokenizer import write_tokenizer
from toolchain.model.families import layer_prefix, layer_tensors, linear_shapes
from toolchain.model.spec import load_spec

_WIDTH = 32


def build_guide(checkpoint: Path, out_dir: Path) -> None:
    """Write the tiny model to `out_dir`/guide, and the tokenizer beside it."""
    target = load_spec(checkpoint)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": target.vocab_size,
        "hidden_size": _WIDTH,
        "intermediate_size": _WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": _WIDTH,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "eos_token_id": list(target.eos_token_ids),
    }
    with tempfile.TemporaryDirectory() as name:
        model = Path(name)
        (model / "config.json").write_text(json.dumps(config))
        spec = load_spec(model)
        linears = linear_shapes(spec, 0)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, _WIDTH)}
        shapes["model.norm.weight"] = (_WIDTH,)
        for tensor in layer_tensors(spec, 0):
            shapes[layer_prefix(0) + tensor] = linears.get(tensor.removesuffix(".weight"), (_WIDTH,))
        zeros = {key: StoredTensor.of(torch.zeros(shape).bfloat16()) for key, shape in shapes.items()}
        write_tensor_file(model / "model.safetensors", zeros)
        build_ir(model, out_dir / "guide")
    write_tokenizer(checkpoint, out_dir / "guide")
