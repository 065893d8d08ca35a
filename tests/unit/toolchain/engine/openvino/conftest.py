"""Tiny random models, their int4 form, and the two ways of running an IR."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from quantize.formats.base import W4A16_AWQ, LinearScheme
from quantize.formats.modelopt import ModelOpt
from quantize.linear import QuantizedLinear
from toolchain.engine.openvino import build_ir, plugin_properties
from toolchain.model.checkpoint import Checkpoint

FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (
        transformers.LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": 24, "head_dim": 48}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 64}),
}

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 503,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,  # logits of a size at which an argmax means something
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

GROUP = 32


@dataclass
class Paged:
    """What continuous batching returned for one request."""

    tokens: list[int]
    log_probs: list[float]


@dataclass
class TinyModel:
    """A checkpoint directory and the transformers model (f32) that it stands for."""

    directory: Path
    reference: Any
    ir_dir: Path = field(init=False)

    def __post_init__(self) -> None:
        self.ir_dir = self.directory.parent / "ir"

    def build(self, **kwargs: Any) -> Path:
        build_ir(self.directory, self.ir_dir, **kwargs)
        return self.ir_dir

    def logits(self, ids: Any) -> Any:
        """[batch, seq, vocab] of transformers."""
        with torch.no_grad():
            return self.reference(torch.as_tensor(ids)).logits.numpy()

    def greedy(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """What transformers would have chosen, greedily, in place of every token of `answer`."""
        ids = [*prompt, *answer]
        return [int(token) for token in self.logits([ids])[0].argmax(-1)[len(prompt) - 1 : -1]]


def make_tiny(
    directory: Path, family: str, dtype: torch.dtype = torch.float32, **overrides: Any
) -> TinyModel:
    """A random model of `family`, stored as `dtype`."""
    kind, own = FAMILIES[family]
    torch.manual_seed(0)
    config = kind(**(SMALL | own | overrides))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):  # transformers starts them at one and at zero
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(dtype).save_pretrained(directory)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return TinyModel(directory, reference)


def quantize_to_nearest(model: TinyModel, directory: Path) -> TinyModel:
    """The W4A16_AWQ form of a plain model: rounded to nearest, with input scales on o_proj and down_proj."""
    source, tensors = Checkpoint.open(model.directory), {}
    weights = dict(model.reference.named_parameters())
    generator = torch.Generator().manual_seed(1)
    for name in source.names:
        module = name.removesuffix(".weight")
        if not name.endswith("_proj.weight"):
            tensors[name] = source.read(name)
            continue
        weight_OI = source.read(name).float()
        groups_OGI = weight_OI.reshape(weight_OI.shape[0], -1, GROUP)
        scales_OG = groups_OGI.abs().amax(-1) / 7
        codes = (groups_OGI / scales_OG[..., None]).round().clamp(-8, 7).to(torch.int8)
        input_scale = None
        if module.endswith(("o_proj", "down_proj")):
            input_scale = torch.rand(weight_OI.shape[1], generator=generator) + 0.5
        linear = QuantizedLinear(codes.reshape(weight_OI.shape), scales_OG, 4, pre_quant_scale=input_scale)
        tensors |= ModelOpt().linear_tensors(module, linear, LinearScheme(W4A16_AWQ, GROUP), torch.bfloat16)
        with torch.no_grad():
            weights[name].copy_(linear.dequantize())
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((model.directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(model.directory / "generation_config.json", directory)
    return TinyModel(directory, model.reference)


def stateful(ir_dir: Path, ids: Any, pieces: Sequence[int], precision: str = "exact") -> Any:
    """Logits [batch, seq, vocab] of the graph as written, fed `pieces` tokens at a time."""
    import openvino as ov

    properties = plugin_properties(precision, "auto")
    compiled = ov.Core().compile_model(str(ir_dir / "openvino_model.xml"), "CPU", properties)
    request, ids = compiled.create_infer_request(), np.asarray(ids, np.int64)
    logits, start = [], 0
    for piece in pieces:
        end = start + piece
        request.infer(
            {
                "input_ids": ids[:, start:end],
                "attention_mask": np.ones((len(ids), end), np.int64),
                "position_ids": np.arange(start, end, dtype=np.int64)[None].repeat(len(ids), 0),
                "beam_idx": np.arange(len(ids), dtype=np.int32),
            }
        )
        logits.append(request.get_tensor("logits").data.copy())
        start = end
    return np.concatenate(logits, 1)


def paged(
    ir_dir: Path,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    precision: str = "exact",
    kv_cache: str = "auto",
    chunk: int = 256,
    echo: bool = False,
    rounds: int = 1,
) -> list[Paged]:
    """All `prompts` at once through continuous batching, greedily; what the last of `rounds` returned.

    Later rounds find the prompts in the prefix cache. `echo` puts the prompt, with its log-probabilities,
    before the answer.
    """
    import openvino as ov
    import openvino_genai as genai

    pipeline = open_pipeline(ir_dir, plugin_properties(precision, kv_cache), chunk)
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.logprobs, config.echo = new_tokens, True, 1, echo
    for first in range(0, rounds * len(prompts), len(prompts)):
        handles = [
            pipeline.add_request(first + index, ov.Tensor(np.array([prompt], np.int64)), config)
            for index, prompt in enumerate(prompts)
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        outputs = [handle.read_all()[0] for handle in handles]
    return [Paged(list(out.generated_ids), list(out.generated_log_probs)) for out in outputs]


def open_pipeline(ir_dir: Path, properties: dict[str, Any], chunk: int = 256, blocks: int = 64) -> Any:
    """A `ContinuousBatchingPipeline` with a cache of `blocks` blocks."""
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks, scheduler.max_num_batched_tokens = blocks, chunk
    scheduler.dynamic_split_fuse = scheduler.enable_prefix_caching = True
    return genai.ContinuousBatchingPipeline(str(ir_dir), scheduler, "CPU", properties, {})


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TinyModel]:
    """`tiny(family, dtype, int4=..., **config)` makes a model below `tmp_path`."""

    def make(family: str, dtype: torch.dtype = torch.float32, int4: bool = False, **config: Any) -> TinyModel:
        model = make_tiny(tmp_path / "plain", family, dtype, **config)
        return quantize_to_nearest(model, tmp_path / "int4") if int4 else model

    return make


@pytest.fixture
def run_stateful() -> Callable[..., Any]:
    return stateful


@pytest.fixture
def run_paged() -> Callable[..., list[Paged]]:
    return paged


@pytest.fixture
def pipeline_of() -> Callable[..., Any]:
    return open_pipeline
