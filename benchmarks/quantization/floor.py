"""The least time that a calibrated quantization of a model could take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from toolchain.model.spec import ModelSpec, load_spec

_SIDE = 1024
_SECONDS = 3.0
_READ_BYTES = 1 << 30
# Methods that look at products of activations, not only at their size.
_SECOND_MOMENTS = ("awq", "gptq", "awq_gptq")


@dataclass(frozen=True)
class Machine:
    """What the processor and the page cache give: FLOP/s of the faster of bf16 and f32, bytes/s."""

    flops: float
    dtype: str
    read: float


def measure_machine(file: Path) -> Machine:
    """The best rate of a large matrix product in some seconds, and of reading `file` a second time.

    On a processor without bf16 instructions the product in bf16 is a hundred times slower than in f32.
    """
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
        rates[str(dtype).removeprefix("torch.")] = 2 * _SIDE**3 / _fastest(partial(torch.matmul, a, b))
    best = max(rates, key=lambda name: rates[name])
    _read(file)
    started = time.perf_counter()
    count = _read(file)
    return Machine(rates[best], best, count / (time.perf_counter() - started))


def floor_seconds(model: Path, method: str, tokens: int, length: int, machine: Machine) -> float:
    """One forward of the calibration tokens through every layer and each weight read once; for a method of
    second moments also the Gram matrix of every distinct input, and a second forward, through the layer as it
    is quantized."""
    spec = load_spec(model)
    layer = _forward_flops(spec, tokens, length)
    if method in _SECOND_MOMENTS:
        layer += layer + _gram_flops(spec, tokens)
    flops = spec.num_hidden_layers * layer
    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return flops / machine.flops + stored / machine.read


def _forward_flops(spec: ModelSpec, tokens: int, length: int) -> int:
    """Of one layer: its linears, and attention under a causal mask."""
    hidden, wide = spec.hidden_size, spec.intermediate_size
    heads, kv = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    weights = hidden * (2 * heads + 2 * kv + 3 * wide)
    return 2 * tokens * weights + 2 * tokens * length * heads


def _gram_flops(spec: ModelSpec, tokens: int) -> int:
    """X^T X of the inputs of q/k/v, o, gate/up and down. Half of each would do; no library offers that."""
    widths = (
        spec.hidden_size,
        spec.num_attention_heads * spec.head_dim,
        spec.hidden_size,
        spec.intermediate_size,
    )
    return sum(2 * tokens * width**2 for width in widths)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of at least two, and of as many as fit in a while."""
    found: list[float] = []
    while len(found) < 2 or sum(found) < _SECONDS:
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def _read(file: Path) -> int:
    count = 0
    with file.open("rb", buffering=0) as opened:
        while count < _READ_BYTES and (piece := opened.read(1 << 24)):
            count += len(piece)
    return count
