"""Quantizing an 8B shape on a GPU, beside nvidia-modelopt: all 32 layers, 128 x 2048 calibration tokens.

    python -m benchmarks quantization_gpu       keeps its numbers; without a GPU the last ones stay

ModelOpt is measured where it is installed beside us.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.model import random_llama

CACHE = Path(os.environ.get("LLMBUILD_BENCH", Path.home() / ".cache" / "llmbuild-bench"))
SHAPE = {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "intermediate": 14336}
SAMPLES, LENGTH = 128, 2048
RUNS = (
    *(("llmbuild", method) for method in ("fp8", "awq", "gptq", "awq_gptq")),
    *(("modelopt", method) for method in ("fp8", "awq")),
)
LIMIT = 900.0
_MODELOPT_BATCH = 4


def run() -> dict[str, Any] | None:
    """Every run in a process of its own; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        print("  there is no CUDA device: the last numbers stay", file=sys.stderr)
        return None
    model = CACHE / "llama-8b"
    if not (model / "model.safetensors.index.json").is_file():
        random_llama(model, **SHAPE)
        os.sync()  # or the first run would wait for the model to reach the disk
    return {
        "model": "random bf16 Llama of the shape of Llama 3.1 8B, vocabulary of the demo model",
        "load": f"{SAMPLES} x {LENGTH} random calibration tokens",
        "GPU": torch.cuda.get_device_name(),
        "bf16 matrix product (8192), TFLOP/s": f"{_tflops():.0f}",
        "time": "ours: from the model's files to the checkpoint's, with the state to resume from; ModelOpt: "
        "quantize alone, the model being in GPU memory, nothing written",
        "rows": [_one(tool, method) for tool, method in RUNS],
    }


def _one(tool: str, method: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "tool": tool,
        "method": method,
        "seconds": "-",
        "GPU peak, GB": "-",
        "RSS, GB": "-",
    }
    if tool == "modelopt" and find_spec("modelopt") is None:
        return row | {"seconds": "absent"}
    command = [sys.executable, "-m", "benchmarks.quantization_gpu", tool, method]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    except subprocess.TimeoutExpired:
        return row | {"seconds": f"over {LIMIT:.0f}"}
    seconds, gpu, host = json.loads(done.stdout.splitlines()[-1])
    return row | {
        "seconds": f"{seconds:.1f}",
        "GPU peak, GB": f"{gpu / 1e9:.2f}",
        "RSS, GB": f"{host / 1e9:.2f}",
    }


def _tflops() -> float:
    import torch

    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for repeats in (3, 20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / repeats
    return 2 * 8192**3 / seconds / 1e12


def _tokens(model: Path) -> Any:
    import torch

    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (SAMPLES, LENGTH), generator=generator)


def _ours(model: Path, method: str) -> float:
    from quantize.calibration import Calibration
    from quantize.driver import Machine, quantize_model
    from quantize.methods.registry import make_method

    calibration = Calibration("random", _tokens(model), 0)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        started = time.perf_counter()
        quantize_model(
            model,
            Path(name) / "out",
            Path(name) / "work",
            method=make_method(method),
            calibration=calibration,
            machine=Machine("cuda"),
        )
        return time.perf_counter() - started


def _modelopt(model: Path, method: str) -> float:
    import copy

    import modelopt.torch.quantization as mtq
    import torch
    import transformers

    tokens = _tokens(model)
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).cuda().eval()
    config = copy.deepcopy(mtq.FP8_DEFAULT_CFG if method == "fp8" else mtq.INT4_AWQ_CFG)

    @torch.inference_mode()
    def forward(module: Any) -> None:
        for batch in tokens.split(_MODELOPT_BATCH):
            module(batch.cuda())

    torch.cuda.synchronize()
    started = time.perf_counter()
    mtq.quantize(whole, config, forward)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """One run, in this process; prints seconds, GPU peak and host peak in bytes, as JSON."""
    import torch

    tool, method = sys.argv[1:]
    seconds = (_ours if tool == "llmbuild" else _modelopt)(CACHE / "llama-8b", method)
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([seconds, torch.cuda.max_memory_allocated(), host]))


if __name__ == "__main__":
    main()
