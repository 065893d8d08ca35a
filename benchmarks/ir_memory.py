"""Peak memory of writing an OpenVINO IR against the size of the checkpoint: it should not depend on it.

python -m benchmarks.ir_memory MODEL OUT     write the IR in this process, print how its memory grew
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.model import random_llama

LAYERS, HIDDEN = (6, 24), 1024


def run() -> dict[str, Any]:
    """Write the IR of random models, plain and int4, shallow and deep, each in a process of its own."""
    return {
        "model": f"random Llama, hidden {HIDDEN}, {HIDDEN // 64} heads, MLP {HIDDEN * 11 // 4}",
        "figure": "growth of the resident set (VmHWM) beyond what the imports take",
        "rows": [_measure(layers, int4) for layers in LAYERS for int4 in (False, True)],
    }


def _measure(layers: int, int4: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        model, ir = Path(name) / "model", Path(name) / "ir"
        random_llama(model, hidden=HIDDEN, layers=layers, intermediate=HIDDEN * 11 // 4)
        if int4:
            replace_linears_by_codes(model)
        command = [sys.executable, "-m", "benchmarks.ir_memory", str(model), str(ir)]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        grown, seconds = json.loads(child.stdout)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        return {
            "weights": "int4" if int4 else "bf16",
            "layers": layers,
            "checkpoint, MB": round(size / 1e6, 1),
            "IR, MB": round((ir / "openvino_model.bin").stat().st_size / 1e6, 1),
            "growth, MB": round(grown / 1e6, 1),
            "seconds": round(seconds, 2),
        }


def replace_linears_by_codes(model: Path) -> None:
    """Make it W4A16_AWQ in form: random codes, one scale for every 128 of them."""
    import torch
    from safetensors.torch import load_file, save_file

    index_file = model / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    for file in sorted(set(index["weight_map"].values())):
        tensors = load_file(model / file)
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            rows, columns = tensors[name].shape
            tensors[name] = torch.randint(256, (rows // 2, columns), dtype=torch.uint8)
            tensors[f"{name}_scale"] = torch.full((rows, columns // 128), 0.01)
            index["weight_map"][f"{name}_scale"] = file
        save_file(tensors, model / file)
    index_file.write_text(json.dumps(index))
    config_file = model / "config.json"
    described = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 128}
    config = json.loads(config_file.read_text()) | {"quantization_config": described}
    config_file.write_text(json.dumps(config))


def _build(model: Path, ir: Path) -> tuple[int, float]:
    """Bytes by which this process's peak resident memory grew, and the seconds it took."""
    import toolchain.engine.openvino.weights  # noqa: F401 -- OpenVINO itself is not to be counted
    from toolchain.engine.openvino import build_ir

    before, started = status("VmRSS"), time.perf_counter()
    build_ir(model, ir)
    return status("VmHWM") - before, time.perf_counter() - started


def status(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    print(json.dumps(_build(Path(sys.argv[1]), Path(sys.argv[2]))))
