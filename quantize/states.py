"""The calibration set's hidden states: in host memory or on the disk, a batch at a time on the device.

Shapes: N sequences of S tokens, C channels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from toolchain.errors import os_error

# Saving may take this share of the time.
_SAVE_SHARE = 0.1


class States:
    """One value for every token and channel, [N, S, C].

    Args:
        shape: (N, S, C).
        dtype: as the model computes.
        device: where batches are wanted.
        batches: slices of sequences; together they cover all N.
        file: keep the values in this file, which is made and unlinked at once, instead of in memory.

    Raises:
        StoreError: there is no room for the file.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        *,
        device: torch.device,
        batches: list[slice],
        file: Path | None = None,
    ) -> None:
        self.batches = batches
        self._link = _Bus(device) if device.type == "cuda" else _Host()
        if file is None:
            # Pinned, so that batches travel to the GPU while it computes.
            self.values = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
        else:
            self.values = _mapped(file, shape, dtype)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Every batch, on the device; the next one is on its way while this one is worked on."""
        self._link.begin_pass()
        coming = self._link.fetch(self.values[self.batches[0]])
        for number, batch in enumerate(self.batches):
            here = coming
            if number + 1 < len(self.batches):
                coming = self._link.fetch(self.values[self.batches[number + 1]])
            yield batch, here()

    def write(self, batch: slice, values: Tensor) -> None:
        """Put a batch of the device back; a pass that begins later sees it."""
        self._link.store(self.values[batch], values)

    def settle(self) -> None:
        """Wait until everything written is there."""
        self._link.settle()


class _Host:
    """The device is the host: nothing travels."""

    def begin_pass(self) -> None:
        """Nothing to do."""

    def settle(self) -> None:
        """Nothing to do."""

    def fetch(self, values: Tensor) -> Callable[[], Tensor]:
        """The values themselves."""
        return lambda: values

    def store(self, target: Tensor, values: Tensor) -> None:
        """Copy."""
        target.copy_(values)


class _Bus:
    """Copies to and from a GPU beside its computations: one queue for each direction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._inward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._outward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin_pass(self) -> None:
        """Let fetches wait for what was stored before."""
        self._inward.wait_stream(self._outward)

    def settle(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self.device)

    def fetch(self, values: Tensor) -> Callable[[], Tensor]:
        """Start a copy to the GPU; the call that is returned makes computations wait for it."""
        with torch.cuda.stream(self._inward):
            there = values.to(self.device, non_blocking=True)
            arrived = self._inward.record_event()

        def take() -> Tensor:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(arrived)
            there.record_stream(here)
            return there

        return take

    def store(self, target: Tensor, values: Tensor) -> None:
        """Start a copy to the host, after what is being computed."""
        self._outward.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._outward):
            target.copy_(values, non_blocking=True)
        values.record_stream(self._outward)


def _mapped(file: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """A tensor in a file of no name: pages are written out when memory is short, and no trace is left."""
    count = shape[0] * shape[1] * shape[2]
    try:
        with file.open("wb") as handle:
            handle.truncate(count * dtype.itemsize)
        values = torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(shape)
        file.unlink()
    except OSError as error:
        raise os_error(error, "make room for the calibration set's hidden states") from error
    return values


class Saver:
    """Saves hidden states beside the work, and seldom enough that the work hardly notices."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._began = self._took = 0.0

    @property
    def due(self) -> bool:
        """Whether the last save is done, and long enough ago for its cost."""
        if self._thread is not None and self._thread.is_alive():
            return False
        return time.monotonic() - self._began >= self._took / _SAVE_SHARE

    def start(self, save: Callable[[], None]) -> None:
        """Run `save` beside the caller, who leaves the values alone until `wait`."""
        self.wait()

        def run() -> None:
            try:
                save()
            except BaseException as error:  # told by wait, in the thread that asked
                self._failure = error
            self._took = time.monotonic() - self._began

        self._began = time.monotonic()
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for a save that is going on. Raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
