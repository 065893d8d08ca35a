"""Peak memory of quantization against the depth of the model: it should not depend on it.

python -m benchmarks.quantize_memory MODEL OUT     quantize in this process, print its peak
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.model import random_llama

LAYERS, HIDDEN, SAMPLES, SEQ_LEN, ROUNDS = (4, 32), 512, 16, 256, 3


def run() -> dict[str, Any]:
    """Quantize random models of one width, few and many layers, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for layers in LAYERS:
            model = Path(name) / str(layers)
            random_llama(model, hidden=HIDDEN, layers=layers, intermediate=3 * HIDDEN)
            rounds = [_quantized(model) for _ in range(ROUNDS)]
            peaks = [peak for peak, _ in rounds]
            stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
            rows.append(
                {
                    "layers": layers,
                    "weights, MB": round(stored / 1e6, 1),
                    "peak RSS, MB": round(statistics.median(peaks) / 1e6, 1),
                    "seconds": round(min(seconds for _, seconds in rounds), 1),
                }
            )
    return {
        "model": f"random bf16 Llama, hidden {HIDDEN}, {HIDDEN // 64} heads, MLP {3 * HIDDEN}",
        "load": f"AWQ, {SAMPLES} x {SEQ_LEN} calibration tokens; median VmHWM of {ROUNDS} runs",
        "rows": rows,
        "ratio (goal: within 5 % of 1)": round(rows[1]["peak RSS, MB"] / rows[0]["peak RSS, MB"], 3),
    }


def _quantized(model: Path) -> tuple[float, float]:
    """Peak resident bytes and seconds of one quantization in a fresh process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "benchmarks.quantize_memory", str(model), out]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, seconds = json.loads(child.stdout)
    return peak, seconds


def _quantize(model: Path, out: Path) -> tuple[int, float]:
    import torch

    from quantize.calibration import Calibration
    from quantize.driver import quantize_model
    from quantize.methods.awq import Awq

    tokens = torch.randint(4096, (SAMPLES, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    calibration = Calibration("random", tokens, 0)
    started = time.perf_counter()
    quantize_model(model, out / "checkpoint", out / "work", method=Awq(), calibration=calibration)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024, seconds


if __name__ == "__main__":
    print(json.dumps(_quantize(Path(sys.argv[1]), Path(sys.argv[2]))))
