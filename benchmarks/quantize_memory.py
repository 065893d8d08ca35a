"""Peak memory of quantization against the depth of the model: it should not depend on it.

Makes random Llama models of one width with few and with many layers, quantizes each with AWQ in a process
of its own, and prints the largest resident set (VmHWM) that the process had, and their ratio.

    python -m benchmarks.quantize_memory [--layers 4 32] [--hidden 512] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HEAD_DIM = 64
_VOCABULARY = 4096


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs=2, default=(4, 32), metavar="N")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size, a multiple of 128")
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(_quantize(*options.child, options.samples, options.seq_len)))
        return 0

    rows = [_measure(depth, options) for depth in options.layers]
    ratio = rows[1]["peak_mb"] / rows[0]["peak_mb"]
    print(f"hidden {options.hidden}, {options.samples} x {options.seq_len} tokens, {os.cpu_count()} CPUs")
    print(f"{'layers':>6} {'model MB':>9} {'peak MB':>8} {'seconds':>8}")
    for row in rows:
        print(f"{row['layers']:>6} {row['model_mb']:>9.1f} {row['peak_mb']:>8.1f} {row['seconds']:>8.1f}")
    print(f"ratio of the peaks: {ratio:.3f}")
    if options.json:
        import torch

        conditions = {
            "hidden_size": options.hidden,
            "calibration": f"{options.samples} x {options.seq_len}",
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        result = {"name": "quantize_memory", "conditions": conditions, "rows": rows, "ratio": ratio}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _measure(layers: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model_bytes = _make_model(root / "model", layers, options.hidden)
        command = [sys.executable, "-m", "benchmarks.quantize_memory", "--child", root / "model", root]
        command += ["--samples", str(options.samples), "--seq-len", str(options.seq_len)]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return {"layers": layers, "model_mb": model_bytes / 1e6, **json.loads(child.stdout)}


def _make_model(directory: Path, layers: int, hidden: int) -> int:
    """A random bfloat16 Llama, written directly. Returns the size of its weights in bytes."""
    import torch

    from quantize.formats.tensorfile import StoredTensor, write_tensor_file
    from toolchain.model.families import expected_tensors
    from toolchain.model.spec import load_spec

    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": _VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // _HEAD_DIM,
        "num_key_value_heads": max(1, hidden // _HEAD_DIM // 4),
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    (directory / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in expected_tensors(load_spec(directory)).items():
        values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=random) * 0.02
        tensors[name] = StoredTensor.of(values.bfloat16())
    write_tensor_file(directory / "model.safetensors", tensors)
    return sum(tensor.nbytes for tensor in tensors.values())


def _quantize(model_dir: Path, root: Path, samples: int, seq_len: int) -> dict[str, float]:
    """Quantize, in this process; its peak resident memory and the seconds it took."""
    import time

    import torch

    from quantize.awq_method import Awq
    from quantize.calibration import Calibration
    from quantize.driver import quantize_model

    tokens = torch.randint(_VOCABULARY, (samples, seq_len), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    quantize_model(
        model_dir, root / "out", root / "work", method=Awq(), calibration=Calibration("random", tokens, 0)
    )
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak_kb = int(status.split("VmHWM:")[1].split()[0])
    return {"peak_mb": peak_kb / 1024, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
