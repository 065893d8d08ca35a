"""Peak memory of writing an OpenVINO IR, against the size of the checkpoint: it should not depend on it.

Makes a random Llama, plain bf16 or with random int4 codes, in two depths; writes the IR of each in a process
of its own, and prints by how much the largest resident set (VmHWM) exceeds what the imports alone take.

    python -m benchmarks.ir_memory [--layers 6 24] [--hidden 1024] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.model import random_llama


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=(6, 24), metavar="N")
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size, a multiple of 128")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(_build(*options.child)))
        return 0

    rows = [_measure(layers, options.hidden, int4) for layers in options.layers for int4 in (False, True)]
    print(f"{'weights':>8} {'layers':>6} {'checkpoint MB':>13} {'IR MB':>7} {'peak MB':>8} {'seconds':>8}")
    for row in rows:
        print(
            f"{row['weights']:>8} {row['layers']:>6} {row['checkpoint_mb']:>13.1f} {row['ir_mb']:>7.1f} "
            f"{row['peak_mb']:>8.1f} {row['seconds']:>8.2f}"
        )
    if options.json:
        result = {"name": "ir_memory", "conditions": conditions() | {"hidden_size": options.hidden}}
        options.json.write_text(json.dumps(result | {"rows": rows}, indent=2) + "\n")
    return 0


def _measure(layers: int, hidden: int, int4: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        model, ir = Path(name) / "model", Path(name) / "ir"
        heads = hidden // 64
        random_llama(
            model,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=heads // 4,
            intermediate=hidden * 11 // 4,
        )
        if int4:
            _replace_linears_by_codes(model)
        command = [sys.executable, "-m", "benchmarks.ir_memory", "--child", str(model), str(ir)]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        return {
            "weights": "int4" if int4 else "bf16",
            "layers": layers,
            "checkpoint_mb": size / 1e6,
            "ir_mb": (ir / "openvino_model.bin").stat().st_size / 1e6,
            **json.loads(child.stdout),
        }


def _replace_linears_by_codes(model: Path) -> None:
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


def _build(model: Path, ir: Path) -> dict[str, float]:
    """Write the IR, in this process; the growth of its peak resident memory and the seconds it took."""
    import toolchain.engine.openvino.weights  # noqa: F401 -- OpenVINO itself is not to be counted
    from toolchain.engine.openvino import build_ir

    before, started = _status_mb("VmRSS"), time.perf_counter()
    build_ir(model, ir)
    seconds = time.perf_counter() - started
    return {"peak_mb": _status_mb("VmHWM") - before, "seconds": seconds}


def _status_mb(field: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
