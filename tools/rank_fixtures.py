"""Let nvidia-modelopt write a model twice: as a Hugging Face checkpoint and as TensorRT-LLM's rank files.

Runs in an environment with ModelOpt, 0.37 or newer, and needs nothing of ours:

    python tools/rank_fixtures.py OUT --algo FP8 --family Llama --family Qwen2
    python tools/rank_fixtures.py tests/data/ranks/modelopt-0.37 --kept

OUT/FAMILY-ALGO/checkpoint is the Hugging Face form; OUT/FAMILY-ALGO/tp2pp1 and so on are rank checkpoints of
the same model. With `--kept` the models are smaller, and each rank checkpoint becomes a JSON file that has
its configs, and of each tensor dtype, shape and digest: what lies beside the tests.

Where this ModelOpt does not export something, OUT/FAMILY-ALGO/*refused.txt has its reason. It treats all
families as Llama; what it says in config.json of a Qwen is then not what TensorRT-LLM wants.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import modelopt.torch.quantization as mtq
import torch
import transformers
from modelopt.torch.export import export_hf_checkpoint, export_tensorrt_llm_checkpoint
from safetensors import safe_open

LAYOUTS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2))
FAMILIES = ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3")
GROUP = 64

# Sizes, in the place of these, of what is kept; and which cases are.
_SMALL = {
    "vocab_size": 32,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
}
_KEPT = (
    ("Llama", "FP8"),
    ("Llama", "FP8_PER_CHANNEL_PER_TOKEN"),
    ("Llama", "W4A16_AWQ"),
    ("Llama", "W4A8_AWQ"),
    ("Llama", "W8A8_SQ_PER_CHANNEL"),
    ("Llama", "NVFP4"),
    ("Mixtral", "FP8"),
    ("Mixtral", "W4A16_AWQ"),
    ("Mixtral", "NVFP4"),
)
_KEPT_FILES = ("config.json", "hf_quant_config.json", "model.safetensors")

# What ModelOpt raises for a model that it does not export.
_REFUSALS = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)

_CONFIGS = {
    "none": None,
    "FP8": "FP8_DEFAULT_CFG",
    "FP8_PER_CHANNEL_PER_TOKEN": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "W4A16_AWQ": "INT4_AWQ_CFG",
    "W4A8_AWQ": "W4A8_AWQ_BETA_CFG",
    "W8A8_SQ_PER_CHANNEL": "INT8_SMOOTHQUANT_CFG",
    "NVFP4": "NVFP4_DEFAULT_CFG",
}
ALGOS = tuple(_CONFIGS)

# Algorithms with a quantized KV cache, and the bits of exponent and mantissa of its numbers.
_KV_CACHE = {"FP8": (4, 3)}

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}


def main() -> None:
    """Write what the command line asks for."""
    args = _arguments()
    torch.set_num_threads(1)
    cases = [(family, algo) for algo in args.algo or ALGOS for family in args.family or FAMILIES]
    sizes = _SIZES | ({"vocab_size": args.vocabulary} if args.vocabulary else {})
    if args.kept:
        cases = [case for case in cases if case in _KEPT]
    for family, algo in cases:
        print(family, algo, flush=True, file=sys.stderr)
        out = args.out / f"{family}-{algo}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        try:
            _write(family, algo, out, _SIZES | _SMALL if args.kept else sizes)
            if args.kept:
                _shrink(out)
        except _REFUSALS as error:
            _refuse(out / "refused.txt", error)


def _write(family: str, algo: str, out: Path, sizes: dict[str, Any]) -> None:
    model = _quantized(_model(family, sizes), algo)
    with torch.inference_mode(), _patched():
        export_hf_checkpoint(copy.deepcopy(model), dtype=torch.bfloat16, export_dir=out / "checkpoint")
        for tensor, pipeline in LAYOUTS:
            group = 128 if algo == "W4A8_AWQ" else GROUP
            if "AWQ" in algo and sizes["hidden_size"] % (group * tensor):
                continue
            if sizes["num_attention_heads"] % tensor or sizes["num_hidden_layers"] % pipeline:
                continue
            ranks = out / f"tp{tensor}pp{pipeline}"
            try:
                export_tensorrt_llm_checkpoint(
                    copy.deepcopy(model),
                    "llama",
                    torch.bfloat16,
                    ranks,
                    inference_tensor_parallel=tensor,
                    inference_pipeline_parallel=pipeline,
                )
            except _REFUSALS as error:
                shutil.rmtree(ranks, ignore_errors=True)
                _refuse(out / f"{ranks.name}-refused.txt", error)


def _refuse(path: Path, error: Exception) -> None:
    path.write_text(f"{type(error).__name__}: {error}\n")


def _shrink(out: Path) -> None:
    """Leave what is kept."""
    for path in (out / "checkpoint").iterdir():
        if path.name not in _KEPT_FILES:
            path.unlink()
    for ranks in sorted(path for path in out.glob("tp*") if path.is_dir()):
        ranks.with_suffix(".json").write_text(json.dumps(_described(ranks), indent=None) + "\n")
        shutil.rmtree(ranks)


def _model(family: str, sizes: dict[str, Any]) -> Any:
    """A random model whose norms are far from one, as those of trained models are."""
    if family == "Mixtral":
        sizes = sizes | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": None}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).eval()
    model.config.architectures = [f"{family}ForCausalLM"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.uniform_(0.5, 1.5)
    return model


def _quantized(model: Any, algo: str) -> Any:
    preset = _CONFIGS[algo]
    if preset is None:
        return model
    config = copy.deepcopy(getattr(mtq, preset))
    if algo == "W4A16_AWQ":
        _set_group(config["quant_cfg"])
    if algo in _KV_CACHE:
        _quantize_kv_cache(config, _KV_CACHE[algo])
    tokens = torch.randint(model.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(1))
    return mtq.quantize(model, config, lambda module: [module(row[None]) for row in tokens])


def _quantize_kv_cache(config: dict[str, Any], numbers: Any) -> None:
    """Scales of keys and values as well, one each a layer; `numbers` as ModelOpt has them."""
    name, own = "*[kv]_bmm_quantizer", {"num_bits": numbers, "axis": None}
    if isinstance(config["quant_cfg"], list):
        config["quant_cfg"].append({"quantizer_name": name, "cfg": own})
    else:
        config["quant_cfg"][name] = own | {"enable": True}


def _set_group(entries: Any) -> None:
    """Groups of 64 in place of 128 in a preset, which is a list of entries since ModelOpt 0.40 or so."""
    parts = [entry.get("cfg") for entry in entries] if isinstance(entries, list) else entries.values()
    for part in parts:
        for own in part if isinstance(part, list) else [part]:
            blocks = own.get("block_sizes") if isinstance(own, dict) else None
            if blocks and blocks.get(-1) == 128:
                blocks[-1] = GROUP


def _patched() -> contextlib.AbstractContextManager[Any]:
    """NVFP4's packer asks the GPU whether it has instructions for it."""
    module = "modelopt.torch.quantization.qtensor.nvfp4_tensor"
    __import__(module)
    if not hasattr(sys.modules[module], "fp4_compatible"):
        return contextlib.nullcontext()
    return patch(f"{module}.fp4_compatible", lambda: False)


def _described(ranks: Path) -> dict[str, Any]:
    """The configs of a rank checkpoint, and of every tensor dtype, shape and digest."""
    found: dict[str, Any] = {path.name: json.loads(path.read_text()) for path in sorted(ranks.glob("*.json"))}
    for path in sorted(ranks.glob("rank*.safetensors")):
        found[path.name] = {}
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                values = file.get_tensor(name)
                digest = hashlib.sha256(values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
                kind = str(values.dtype).removeprefix("torch.")
                found[path.name][name] = [kind, list(values.shape), digest.hexdigest()[:16]]
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--algo", action="append", choices=ALGOS, help="only this one; may be repeated")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this; may be repeated")
    parser.add_argument("--vocabulary", type=int, help="tokens of the models, in place of 128")
    parser.add_argument("--kept", action="store_true", help="write what is kept beside the tests")
    return parser.parse_args()


if __name__ == "__main__":
    main()
