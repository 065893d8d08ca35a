"""The source model on held-out text: what every checkpoint made from it is measured against.

It is computed once for a model and a text, and kept: judging another checkpoint does not run the source.

In a directory:
    baseline.safetensors  `tokens` int64 [W, S]; `hidden` float32 [W, S, H]; `probe` float32 [L + 1, P, H]
    baseline.json         the stride, and the arithmetic floor

Shapes: W windows of S tokens; L layers; P tokens of the probe; H hidden_size.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantize.device import choose_device
from quantize.formats.tensorfile import StoredTensor, write_tensor_file
from toolchain.errors import ModelError
from toolchain.gate.compare import Sums, compare
from toolchain.gate.result import Floor
from toolchain.gate.streamed import StreamedModel, run_layer
from toolchain.gate.text import Windows
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import EMBEDDING, layer_prefix
from toolchain.model.safetensors_file import read_header
from toolchain.progress import Progress, Silent

PROBE_TOKENS = 512
"""The error of single layers is measured on so many tokens, from the beginning of the first window."""

FLOOR_WINDOWS = 2
"""The arithmetic floor is measured on so many windows."""

_TENSORS, _FACTS = "baseline.safetensors", "baseline.json"
_LOW = {"BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Baseline:
    """What the source model makes of held-out text, in float32.

    Attributes:
        windows: the text.
        hidden: float32 [W, S, H], what leaves the last layer.
        probe: float32 [L + 1, P, H], what enters each layer, and what leaves the last, of the probe's tokens.
        floor: what the stored dtype's arithmetic costs by itself; None for a model stored in float32.
    """

    windows: Windows
    hidden: Tensor
    probe: Tensor
    floor: Floor | None

    def save(self, directory: Path) -> None:
        """Write it into `directory`."""
        tensors = {"tokens": self.windows.tokens, "hidden": self.hidden, "probe": self.probe}
        stored = {name: StoredTensor.of(tensor.contiguous()) for name, tensor in tensors.items()}
        write_tensor_file(directory / _TENSORS, stored)
        facts = {"stride": self.windows.stride, "floor": None if self.floor is None else asdict(self.floor)}
        (directory / _FACTS).write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Baseline:
        """Read what `save` wrote; the tensors are maps of the file."""
        stored = Checkpoint(directory, read_header(directory / _TENSORS))
        facts = json.loads((directory / _FACTS).read_bytes())
        return cls(
            Windows(stored.read("tokens"), facts["stride"]),
            stored.view("hidden"),
            stored.view("probe"),
            None if facts["floor"] is None else Floor(**facts["floor"]),
        )


@torch.inference_mode()
def make_baseline(
    source_dir: Path, windows: Windows, *, device: str = "auto", progress: Progress | None = None
) -> Baseline:
    """Run the model in `source_dir` over the text, one decoder layer in memory at a time.

    Of a source that is quantized itself, what its codes stand for is the reference: no activation is rounded.

    Raises:
        ModelError: the model is damaged, or its hidden states are NaN or infinite.
        ToolchainError: the device is not there.
    """
    progress = progress or Silent()
    chosen = choose_device(device)
    model = StreamedModel(source_dir, device=chosen, simulate=False)
    spec = model.spec
    low = _LOW.get(model.checkpoint.checkpoint.dtype(EMBEDDING))
    progress.start("baseline", spec.num_hidden_layers * (1 if low is None else 2) + 1, "steps")
    hidden = model.enter(windows.tokens)
    length = min(PROBE_TOKENS, windows.tokens.shape[1])
    probe_NPH = torch.empty(spec.num_hidden_layers + 1, length, spec.hidden_size)
    probe_NPH[0] = hidden.values[0, :length]
    for index in range(spec.num_hidden_layers):
        if not run_layer(model.layer(index), hidden):
            raise ModelError(
                "the source model's hidden states are NaN or infinite",
                where=layer_prefix(index).removesuffix("."),
                fix="check the source model's weights; they may be damaged",
            )
        probe_NPH[index + 1] = hidden.values[0, :length]
        progress.advance()
    floor = None
    if low is not None:
        floor = _floor(source_dir, windows, hidden.values, low, chosen, progress)
    progress.advance()
    return Baseline(windows, hidden.values, probe_NPH, floor)


def _floor(
    source_dir: Path,
    windows: Windows,
    hidden_WSH: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> Floor:
    """The model computing in `dtype` beside itself computing in float32, on the first windows."""
    few = Windows(windows.tokens[:FLOOR_WINDOWS], windows.stride)
    model = StreamedModel(source_dir, device=device, dtype=dtype, simulate=False)
    hidden = model.enter(few.tokens)
    for index in range(model.spec.num_hidden_layers):
        run_layer(model.layer(index), hidden)
        progress.advance()
    heads = StreamedModel(source_dir, device=device).head(), model.head()
    table = [
        compare(few, number, (hidden_WSH[number], hidden.values[number]), heads)
        for number in range(len(few.tokens))
    ]
    sums = Sums.of(table)
    return Floor(str(dtype).removeprefix("torch."), sums.increase, sums.kl, sums.top1)
