"""Tiny random models, plain and quantized in every way, and the two ways of running an IR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from quantize.formats.base import (
    FP8,
    FP8_ROWWISE,
    INT8_GROUPS,
    INT8_SQ,
    INT8_WO,
    NVFP4,
    W4A8_AWQ,
    W4A16,
    W4A16_AWQ,
    LinearScheme,
    Scheme,
)
from quantize.formats.checkpoint import FORMATS, write_checkpoint
from quantize.formats.tensorfile import StoredTensor
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


@dataclass(frozen=True)
class Quantized:
    """A way of quantizing: the file form, what it says of each linear, and the rounding."""

    form: str
    scheme: LinearScheme
    round: Callable[[torch.Tensor, LinearScheme, torch.Generator], QuantizedLinear]


def round_integers(
    weight_OI: torch.Tensor, scheme: LinearScheme, generator: torch.Generator
) -> QuantizedLinear:
    """Integers to nearest; in random groups where channels are out of order."""
    columns, index = weight_OI.shape[1], None
    size = scheme.group_size or columns
    order = torch.arange(columns)
    if scheme.act_order:
        index = torch.randperm(columns, generator=generator) // size
        order = torch.argsort(index, stable=True)
    groups_OGI = weight_OI[:, order].reshape(weight_OI.shape[0], -1, size)
    low, high, top = groups_OGI.amin(-1), groups_OGI.amax(-1), 2**scheme.bits - 1
    zeros_OG = None
    if scheme.zero_point:
        scales_OG = ((high - low) / top).bfloat16().float()
        zeros_OG = (-low / scales_OG).round().clamp(0, top)
        codes_OGI = (groups_OGI / scales_OG[..., None] + zeros_OG[..., None]).round().clamp(0, top)
    else:
        scales_OG = (torch.maximum(high, -low) / (top // 2)).bfloat16().float()
        codes_OGI = (groups_OGI / scales_OG[..., None]).round().clamp(-top // 2, top // 2)
    codes_OI = codes_OGI.to(torch.uint8 if scheme.zero_point else torch.int8).flatten(1)
    codes_OI = codes_OI[:, torch.argsort(order)].contiguous()
    return QuantizedLinear(codes_OI, scales_OG, scheme.bits, zeros_OG, index)


def round_floats(
    weight_OI: torch.Tensor, scheme: LinearScheme, generator: torch.Generator
) -> QuantizedLinear:
    """E4M3 with a scale per tensor or per output channel."""
    amax = weight_OI.abs().amax().view(1, 1) if scheme.quant_algo == FP8 else weight_OI.abs().amax(1, True)
    scales = amax / 448
    return QuantizedLinear((weight_OI / scales).to(torch.float8_e4m3fn), scales, 8)


def round_fp4(weight_OI: torch.Tensor, scheme: LinearScheme, generator: torch.Generator) -> QuantizedLinear:
    """E2M1 in groups, whose scales are E4M3 times a factor of all of them."""
    groups_OGI = weight_OI.view(weight_OI.shape[0], -1, scheme.group_size)
    amax_OG = groups_OGI.abs().amax(-1)
    factor = amax_OG.max() / 6 / 448
    scales_OG = (amax_OG / 6 / factor).to(torch.float8_e4m3fn).float()
    values_OGI = groups_OGI / (scales_OG * factor).unsqueeze(-1)
    table = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nearest_OGI = (values_OGI.abs().unsqueeze(-1) - table).abs().argmin(-1)
    codes_OI = (table[nearest_OGI] * values_OGI.sign()).flatten(1)
    return QuantizedLinear(codes_OI.to(torch.float8_e4m3fn), scales_OG, 4, weight_scale_2=factor)


SCHEMES = {
    "int4": Quantized("modelopt", LinearScheme(W4A16_AWQ, GROUP), round_integers),
    "w4a8": Quantized("modelopt", LinearScheme(W4A8_AWQ, GROUP), round_integers),
    "int8": Quantized("modelopt", LinearScheme(INT8_WO, bits=8), round_integers),
    "smoothquant": Quantized("modelopt", LinearScheme(INT8_SQ, bits=8), round_integers),
    "fp8": Quantized("modelopt", LinearScheme(FP8, bits=8), round_floats),
    "fp8-rowwise": Quantized("modelopt", LinearScheme(FP8_ROWWISE, bits=8), round_floats),
    "nvfp4": Quantized("modelopt", LinearScheme(NVFP4, 16), round_fp4),
    "gptq": Quantized("gptq", LinearScheme(W4A16_AWQ, GROUP, True, act_order=True), round_integers),
    "gptq-int8": Quantized("gptq", LinearScheme(INT8_GROUPS, GROUP, bits=8), round_integers),
    "awq": Quantized("awq", LinearScheme(W4A16_AWQ, GROUP, True), round_integers),
    "channels": Quantized("compressed-tensors", LinearScheme(W4A16), round_integers),
    "int8-zeros": Quantized("compressed-tensors", LinearScheme(INT8_GROUPS, GROUP, True, 8), round_integers),
}
"""Every kind of codes, each in a form that holds it."""


def quantize_to_nearest(model: TinyModel, directory: Path, name: str) -> TinyModel:
    """A plain model quantized as `SCHEMES[name]`, with input scales where the form has them."""
    own, generator = SCHEMES[name], torch.Generator().manual_seed(1)
    form, source = FORMATS[own.form], Checkpoint.open(model.directory)
    scaled = {W4A16_AWQ: ("o_proj", "down_proj"), W4A8_AWQ: ("o_proj", "down_proj"), INT8_SQ: ("proj",)}
    suffixes = scaled.get(own.scheme.quant_algo, ()) if form.holds_pre_quant_scale else ()
    tensors, linears = {}, {}
    weights = dict(model.reference.named_parameters())
    for tensor in source.names:
        module, _, kind = tensor.rpartition(".")
        if not module.endswith("_proj"):
            tensors[tensor] = source.read(tensor)
        elif kind == "weight":
            weight_OI = source.read(tensor).float()
            linear = own.round(weight_OI, own.scheme, generator)
            bias = f"{module}.bias"
            more: dict[str, torch.Tensor] = {"bias": source.read(bias)} if bias in source else {}
            if module.endswith(suffixes):
                more["pre_quant_scale"] = torch.rand(weight_OI.shape[1], generator=generator) + 0.5
            if own.scheme.quant_algo in (FP8, INT8_SQ, W4A8_AWQ, NVFP4):
                more["input_scale"] = torch.tensor(0.01)
            if own.scheme.quant_algo == W4A8_AWQ:
                more["weight_scale_2"] = torch.tensor(0.01)
            linear = replace(linear, **more)
            tensors |= form.linear_tensors(module, linear, own.scheme, torch.bfloat16)
            linears[module] = own.scheme
            with torch.no_grad():
                weights[tensor].copy_(linear.dequantize())
    stored = {tensor: StoredTensor.of(values.contiguous()) for tensor, values in tensors.items()}
    write_checkpoint(model.directory, directory, stored, Scheme(linears), form)
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
    """`tiny(family, dtype, scheme, **config)` makes a model below `tmp_path`; no scheme, a plain one."""

    def make(
        family: str, dtype: torch.dtype = torch.float32, scheme: str | None = None, **config: Any
    ) -> TinyModel:
        model = make_tiny(tmp_path / "plain", family, dtype, **config)
        return model if scheme is None else quantize_to_nearest(model, tmp_path / "quantized", scheme)

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
