"""Where quantization computes, and in which arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from toolchain.errors import ToolchainError

# Tokens that go through a step at a time: enough to fill the device, few enough that activations stay small.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}


def choose_device(wanted: str) -> torch.device:
    """`wanted` as a device; "auto" is the first CUDA device if there is one, or else the CPU.

    Raises:
        ToolchainError: CUDA is wanted, and torch finds none.
    """
    available = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if available else "cpu")
    if wanted.startswith("cuda") and not available:
        raise ToolchainError(
            "there is no CUDA device",
            where="quantization.device",
            why="torch was built without CUDA" if torch.version.cuda is None else "torch finds no GPU",
            fix="name auto or cpu as the device",
        )
    return torch.device(wanted)


def arithmetic(stored: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass of a model stored as safetensors' dtype `stored`.

    16-bit products are exact enough for statistics, and several times faster where the hardware has them.
    """
    if device.type == "cuda":
        return {"BF16": torch.bfloat16, "F16": torch.float16}.get(stored, torch.float32)
    fast = stored == "BF16" and multiplies(torch.empty(0, dtype=torch.bfloat16))
    return torch.bfloat16 if fast else torch.float32


def multiplies(x: Tensor) -> bool:
    """Whether the device has instructions for products of such numbers.

    Without them, products of 16-bit numbers take a hundred times as long as those of float32.
    """
    if x.is_cuda or x.dtype not in (torch.bfloat16, torch.float16):
        return True
    return x.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def batch_size(length: int, device: torch.device) -> int:
    """Sequences of `length` tokens that go through a step at a time."""
    return max(1, _BATCH_TOKENS[device.type] // length)
