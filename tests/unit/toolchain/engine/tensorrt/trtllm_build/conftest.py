from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import toolchain
from toolchain.engine.tensorrt.trtllm_build.run import Host, Order

STAND_INS = Path(__file__).parent / "stand_in"
H100 = "NVIDIA H100 80GB HBM3, 9.0\n"


class Notes:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = self.done = 0

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        self.total = total

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def assert_dead(pid: int) -> None:
    """A killed process may take a moment; a zombie is dead, whoever reaps it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        if status.rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is alive")


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for trtllm-build, nvidia-smi, docker and podman on PATH; the file with docker's calls."""
    tools = tmp_path / "bin"
    tools.mkdir()

    def install(name: str, text: str) -> None:
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    root = Path(toolchain.__file__).parents[1]
    install(
        "trtllm-build",
        f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} {STAND_INS / "trtllm_build.py"} "$@"\n',
    )
    install("nvidia-smi", '#!/bin/sh\nprintf "%s" "$STAND_IN_GPUS"\n')
    for engine in ("docker", "podman"):
        install(engine, f"#!{sys.executable}\n" + (STAND_INS / "container.py").read_text())
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_GPUS", H100)
    monkeypatch.setenv("STAND_IN_CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "calls"


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """Engines for 2 x 2 GPUs; of the checkpoint, only what a build looks at."""
    checkpoint = tmp_path / "store" / "objects" / "abc" / "data"
    checkpoint.mkdir(parents=True)
    config: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "num_hidden_layers": 8,
        "hidden_size": 512,
        "vocab_size": 1000,
        "mapping": {"world_size": 4, "tp_size": 2, "pp_size": 2},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    for rank in range(4):
        (checkpoint / f"rank{rank}.safetensors").write_bytes(b"rank")
    flags = {
        "max_batch_size": 64,
        "max_num_tokens": 2048,
        "max_seq_len": 8192,
        "kv_cache_type": "paged",
        "gemm_plugin": "auto",
        "use_paged_context_fmha": True,
    }
    return Order(checkpoint, "1.2.1", 2, 2, 90, flags)


@pytest.fixture
def dirs(tmp_path: Path) -> tuple[Path, Path]:
    """Empty directories for the result and for scratch."""
    out, work = tmp_path / "store" / "out", tmp_path / "store" / "work" / "0123456789abcdef"
    for directory in (out, work):
        directory.mkdir(parents=True)
    return out, work


@pytest.fixture
def local() -> Host:
    return Host("local", None, workers=4)
