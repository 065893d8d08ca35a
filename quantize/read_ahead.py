"""Reading the next layer's weights while this one is worked on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from toolchain.model.checkpoint import Checkpoint
from toolchain.model.safetensors_file import prefetch


class ReadAhead:
    """A checkpoint's tensors, of which some are on their way before they are asked for.

    With a GPU, whose memory holds the layer in work, the next one comes into host memory; otherwise into the
    kernel's page cache, which is no memory of ours. One layer at the most is held either way.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._reader = ThreadPoolExecutor(1, "read-ahead") if device.type == "cuda" else None
        self._coming: dict[str, Future[Tensor]] = {}

    def start(self, names: Sequence[str], *, hold: bool = True) -> None:
        """Begin to read tensors; `hold` false leaves them in the page cache in any case."""
        self._coming.clear()
        if hold and self._reader is not None:
            self._coming = {name: self._reader.submit(self._checkpoint.read, name) for name in names}
        else:
            prefetch(self._checkpoint.location(name) for name in names)

    def read(self, name: str) -> Tensor:
        """Tensor `name` in memory of its own, as `Checkpoint.read`."""
        coming = self._coming.pop(name, None)
        return self._checkpoint.read(name) if coming is None else coming.result()
