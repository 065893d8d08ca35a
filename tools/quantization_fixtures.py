"""Write the checkpoints of other quantizers that our readers are tested with, or let those tools read ours.

Runs in the tool's own environment, which needs the tool and nothing of ours:

    python tools/quantization_fixtures.py modelopt tests/data/quantized/modelopt
    python tools/quantization_fixtures.py llmcompressor tests/data/quantized/llmcompressor --kind w4a16
    python tools/quantization_fixtures.py gptqmodel tests/data/quantized/gptqmodel

    python tools/quantization_fixtures.py modelopt --check DIR     DIR: a checkpoint that we wrote

Every kind becomes a directory: a checkpoint of a tiny random Llama (or Mixtral), quantized and saved by the
tool, and `expected.safetensors` with the weights as the tool itself dequantizes what it saved, by module
name. The unquantized source lies in OUT/../source; it is written first and is the same for every tool.

`--check DIR` dequantizes the checkpoint in DIR with the tool and compares with DIR/expected.safetensors,
which whoever wrote the checkpoint puts there, in float32: a line a tensor that differs, exit status 1 if any
does. Without that file, or with --dump FILE, the weights are only written out.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import cast

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from peer_checkpoints.compare import compare
from peer_checkpoints.peer import Peer
from peer_checkpoints.source import SOURCES, write_source
from safetensors.torch import load_file, save_file

TOOLS = ("modelopt", "llmcompressor", "gptqmodel")
EXPECTED = "expected.safetensors"
# What readers look at; logs, tokenizers and cards that a tool leaves beside it are not kept.
KEPT = {EXPECTED, "model.safetensors", "config.json", "hf_quant_config.json", "quantize_config.json"}


def main() -> None:
    """Write fixtures or check a checkpoint, as the command line asks."""
    args = _arguments()
    torch.set_num_threads(1)
    peer = cast(Peer, importlib.import_module(f"peer_checkpoints.{args.tool}"))
    # Some tools leave logs in the working directory.
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        sys.exit(_run(args, peer))


def _run(args: argparse.Namespace, peer: Peer) -> int:
    if args.check is not None:
        return _check(peer.dequantize(args.check), args.check / EXPECTED, args.dump, args.steps)
    for kind in args.kind or peer.KINDS:
        print(kind, flush=True)
        _write(peer, kind, args.out)
    _write_readme(peer, args.tool, args.out)
    return 0


def _write(peer: Peer, kind: str, out: Path) -> None:
    """One fixture directory. It appears whole or not at all."""
    source = out.parent / "source" / peer.SOURCE_OF.get(kind, SOURCES[0])
    write_source(source)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as name:
        made = Path(name) / kind
        peer.write(kind, source, made)
        expected = peer.dequantize(made)
        if not expected:
            sys.exit(f"{kind}: nothing in the checkpoint is quantized")
        save_file({key: value.contiguous() for key, value in sorted(expected.items())}, made / EXPECTED)
        for path in made.iterdir():
            if path.name not in KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(out / kind, ignore_errors=True)
        made.rename(out / kind)


def _check(found: dict[str, torch.Tensor], expected: Path, dump: Path | None, steps: float) -> int:
    if dump is not None:
        save_file({key: value.contiguous() for key, value in found.items()}, dump)
    if not expected.is_file():
        if dump is None:
            print(f"there is no {expected}, and no --dump FILE to write the weights to", file=sys.stderr)
            return 2
        return 0
    lines = compare(found, load_file(expected), tolerance=steps)
    print("\n".join(lines) if lines else f"{len(found)} linears: equal")
    return int(bool(lines))


def _write_readme(peer: Peer, tool: str, out: Path) -> None:
    """What lies here and which versions wrote it."""
    packages = (*peer.PACKAGES, "torch", "transformers", "safetensors")
    lines = [
        f"# Checkpoints that {peer.PACKAGES[0]} wrote",
        "",
        f"Made by `python tools/quantization_fixtures.py {tool} tests/data/quantized/{tool}` with",
        ", ".join(f"{package} {version(package)}" for package in packages)
        + f", Python {sys.version.split()[0]}",
        "on a CPU, one thread. In each `expected.safetensors` lie the weights as the tool dequantizes them:",
        *peer.EXPECTED.splitlines(),
        "",
        "| directory | what |",
        "|---|---|",
        *(f"| `{kind}` | {text} |" for kind, text in peer.KINDS.items() if (out / kind).is_dir()),
        "",
    ]
    (out / "README.md").write_text("\n".join(lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument(
        "out", type=Path, nargs="?", help="where the fixtures go, e.g. tests/data/quantized/modelopt"
    )
    parser.add_argument("--kind", action="append", help="only this kind; may be repeated")
    parser.add_argument("--check", type=Path, metavar="DIR", help="a checkpoint for the tool to dequantize")
    parser.add_argument("--dump", type=Path, metavar="FILE", help="with --check: write the weights here")
    parser.add_argument(
        "--tolerance",
        dest="steps",
        type=float,
        default=0.0,
        metavar="R",
        help="with --check: the relative difference that passes (default 0: equal in the tool's own dtype)",
    )
    args = parser.parse_args()
    if (args.out is None) == (args.check is None):
        parser.error("name either OUT or --check DIR")
    for name in ("out", "check", "dump"):
        if getattr(args, name) is not None:
            setattr(args, name, getattr(args, name).resolve())
    return args


if __name__ == "__main__":
    main()
