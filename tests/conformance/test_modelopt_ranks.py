"""Rank files of nvidia-modelopt, decoded: reassembled they are the model that it exported.

Of an unquantized model to the bit; of a quantized one within the error of its format, which for Gaussian
weights is known.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from quantize.linear import QuantizedLinear
from toolchain.engine.tensorrt.checklist import check_checkpoint
from toolchain.engine.tensorrt.rank import RankFile, RankLayer
from toolchain.engine.tensorrt.rank_config import load_rank_config
from toolchain.engine.tensorrt.verify.run import verify_ranks
from toolchain.findings import errors
from toolchain.model.checkpoint import Checkpoint

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed", exc_type=ImportError)
pytest.importorskip("modelopt.torch", reason="nvidia-modelopt cannot be imported", exc_type=ImportError)

pytestmark = pytest.mark.slow

PRESETS = {
    "none": (None, 0.0),
    "fp8": ("FP8_DEFAULT_CFG", 0.03),
    "fp8_rowwise": ("FP8_PER_CHANNEL_PER_TOKEN_CFG", 0.03),
    "awq": ("INT4_AWQ_CFG", 0.13),
    "w4a8_awq": ("W4A8_AWQ_BETA_CFG", 0.13),
    "int8_sq": ("INT8_SMOOTHQUANT_CFG", 0.02),
    "nvfp4": ("NVFP4_DEFAULT_CFG", 0.10),
}
"""Name -> ModelOpt's preset, and the relative error of the weights."""
WIDTHS: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
FAMILIES = {"Llama": "llama", "Qwen2": "qwen", "Qwen3": "qwen"}
"""transformers' class -> ModelOpt's decoder type."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    import transformers

    root, found = tmp_path_factory.mktemp("sources"), {}
    for family in FAMILIES:
        torch.manual_seed(0)
        extra = {"head_dim": 64} if family == "Qwen3" else {}
        model = getattr(transformers, f"{family}ForCausalLM")(
            getattr(transformers, f"{family}Config")(**WIDTHS | extra)
        )
        model = model.to(torch.bfloat16).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("norm.weight", "bias")):
                    parameter.uniform_(0.5, 1.5)
        model.config.architectures = [type(model).__name__]
        model.save_pretrained(root / family)
        found[family] = model, root / family
    return found


def export(model: Any, family: str, preset: str | None, out: Path, tp: int, pp: int) -> Path:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    model = copy.deepcopy(model)
    if preset is not None:
        tokens = torch.randint(1000, (4, 32), generator=torch.Generator().manual_seed(1))
        model = mtq.quantize(model, getattr(mtq, preset), lambda m: [m(row[None]) for row in tokens])
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            model,
            FAMILIES[family],
            torch.bfloat16,
            export_dir=out,
            inference_tensor_parallel=tp,
            inference_pipeline_parallel=pp,
        )
    return out


def dense(linear: QuantizedLinear | torch.Tensor) -> torch.Tensor:
    return linear.float() if isinstance(linear, torch.Tensor) else linear.dequantize()


def whole(layers: list[RankLayer], module: str, heads: int | None = None) -> torch.Tensor:
    """A linear of all tensor-parallel ranks, each of `heads` key-value heads once."""
    parts = [dense(layer.linears[module]) for layer in layers]
    if module.endswith(("o_proj", "down_proj")):
        return torch.cat(parts, dim=1)
    if heads is not None and len(parts) > heads:
        parts = parts[:: len(parts) // heads]
    return torch.cat(parts)


def check(source: Path, ranks: Path, bound: float) -> None:
    plain, config = Checkpoint.open(source), load_rank_config(ranks)
    tp = config.mapping.tp
    files = [RankFile(config, rank) for rank in range(config.mapping.files)]
    for stage in range(config.mapping.pp):
        group = files[stage * tp : (stage + 1) * tp]
        for index in group[0].layers:
            layers, prefix = [file.layer(index) for file in group], f"model.layers.{index}."
            for module in layers[0].linears:
                kv = config.spec.num_key_value_heads if module.endswith(("k_proj", "v_proj")) else None
                weight, got = plain.read(f"{prefix}{module}.weight").float(), whole(layers, module, kv)
                assert float((got - weight).norm() / weight.norm()) <= bound, (index, module)
            for name, tensor in layers[0].tensors.items():
                if name.endswith(".bias"):
                    heads = config.spec.num_key_value_heads if "q_proj" not in name else tp
                    parts = [layer.tensors[name] for layer in layers]
                    tensor = torch.cat(parts[:: max(1, tp // heads)])
                elif bound and "layernorm" in name:
                    continue  # a quantizer may have moved scales into it
                assert torch.equal(tensor, plain.read(prefix + name)), name
    embedding = torch.cat([file.read("transformer.vocab_embedding.weight") for file in files[:tp]])
    head = torch.cat([file.read("lm_head.weight") for file in files[-tp:]])
    assert torch.equal(embedding[:1000], plain.read("model.embed_tokens.weight"))
    assert torch.equal(head[:1000], plain.read("lm_head.weight"))
    assert torch.equal(files[-1].read("transformer.ln_f.weight"), plain.read("model.norm.weight"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_algorithm_is_decoded(name: str, models: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from modelopt.torch.quantization.qtensor import nvfp4_tensor

    monkeypatch.setattr(nvfp4_tensor, "fp4_compatible", lambda: False, raising=False)  # it asks for CUDA
    model, source = models["Llama"]
    preset, bound = PRESETS[name]
    check(source, export(model, "Llama", preset, tmp_path / "ranks", 2, 2), bound)


@pytest.mark.parametrize(("family", "tp"), [("Qwen2", 4), ("Qwen3", 2), ("Llama", 4)])
def test_biases_norms_and_repeated_heads(family: str, tp: int, models: Any, tmp_path: Path) -> None:
    model, source = models[family]
    check(source, export(model, family, None, tmp_path / "ranks", tp, 1), 0.0)


def test_a_cache_has_the_larger_scale(models: Any, tmp_path: Path) -> None:
    import modelopt.torch.quantization as mtq

    preset = copy.deepcopy(mtq.FP8_DEFAULT_CFG)
    preset["quant_cfg"] = [*preset["quant_cfg"], *copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])]
    mtq.FP8_AND_CACHE = preset
    out = export(models["Llama"][0], "Llama", "FP8_AND_CACHE", tmp_path / "ranks", 1, 1)
    assert json.loads((out / "config.json").read_text())["quantization"]["kv_cache_quant_algo"] == "FP8"
    file = RankFile(load_rank_config(out), 0)
    scales = file.layer(1).kv_scales
    assert scales is not None
    stored = [file.read(f"transformer.layers.1.attention.{which}_cache_scaling_factor") for which in "kv"]
    assert scales[0] == scales[1] == max(stored)


@pytest.mark.parametrize("name", PRESETS)
def test_the_checklist_finds_no_error_in_what_modelopt_writes(
    name: str, models: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """It stores NVFP4's scalars without a dimension, which versions before 1.0 refuse."""
    from modelopt.torch.quantization.qtensor import nvfp4_tensor

    monkeypatch.setattr(nvfp4_tensor, "fp4_compatible", lambda: False, raising=False)
    out = export(models["Llama"][0], "Llama", PRESETS[name][0], tmp_path / "ranks", 2, 1)
    found = check_checkpoint(out, target="1.2.1")
    assert errors(found) == []
    assert {finding.what for finding in found} <= {"it has no dimension, where [1] is expected"}


@pytest.mark.parametrize("name", PRESETS)
def test_its_ranks_run_as_their_source(name: str, models: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Of the unquantized model to float32's rounding; of others as far as quantizing changes the weights."""
    from modelopt.torch.quantization.qtensor import nvfp4_tensor

    monkeypatch.setattr(nvfp4_tensor, "fp4_compatible", lambda: False, raising=False)
    model, source = models["Llama"]
    preset, bound = PRESETS[name]
    found = verify_ranks(export(model, "Llama", preset, tmp_path / "ranks", 2, 2), source)
    assert found.problem is None
    worst = max(max(layer.attention, layer.mlp) for layer in found.layers)
    assert worst < 1e-5 if preset is None else bound / 3 < worst < 8 * bound
