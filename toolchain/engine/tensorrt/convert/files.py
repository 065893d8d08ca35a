"""The rank files while they are written: laid out in advance, filled piece by piece, resumable.

In the working directory:
    rank0.safetensors ...   full size from the start, with their headers; holes where nothing was written yet
    progress.json           what the files belong to, and how many steps of the work are on the disk

`progress.json` is renewed only when everything before it is on the disk: it holds after a power cut, too.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from quantize.formats.packing import as_bytes
from quantize.formats.tensorfile import TensorType, dtype_name, lay_out, write_text_file
from toolchain.errors import BuildError, StoreError, os_error
from toolchain.model.safetensors_file import ITEM_SIZES, read_header

_STATE_FILE = "progress.json"
_WRITERS = 2
_SAVE_SHARE = 0.2  # of the time that saving may go on beside the work
_CHUNK = 16 << 20  # bytes of a strided tensor that are copied at a time


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank{rank}.safetensors"


class RankFiles:
    """The files of all ranks in `directory`, open for writing.

    Args:
        directory: made if need be.
        layouts: for each rank, what its file holds, in order.
        fingerprint: JSON; files that were begun under another one are begun again.

    Raises:
        StoreError: the file system refuses, or has no room for the files.
    """

    def __init__(
        self,
        directory: Path,
        layouts: Sequence[Mapping[str, TensorType]],
        fingerprint: Mapping[str, Any],
    ) -> None:
        self.directory, self.layouts = directory, layouts
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._starts = [lay_out(layout) for layout in layouts]
        self._missing: dict[tuple[int, str], int] = {}
        self._descriptors: dict[int, int] = {}
        self._writers = ThreadPoolExecutor(_WRITERS)
        self._writes: list[Future[None]] = []
        self._saver = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        self._next_save = 0.0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.done = self._resumable()
            if self.done == 0:
                self._begin()
        except OSError as error:
            self._close()
            raise os_error(error, "prepare the rank files") from error

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of all ranks."""
        return sum(tensor.nbytes for layout in self.layouts for tensor in layout.values())

    def write(self, rank: int, name: str, values: Tensor, start: int = 0) -> int:
        """Write a tensor of a rank's file, or a part of it that begins at its element `start`.

        The bytes are written beside the caller, who leaves `values` alone until the step is finished.

        Returns how many elements it is.
        """
        kind = self.layouts[rank][name]
        if dtype_name(values.dtype) != kind.dtype:
            raise ValueError(f"{name} of rank {rank} is {kind.dtype}, not {values.dtype}")
        missing = self._missing.setdefault((rank, name), kind.nbytes) - values.numel() * values.element_size()
        if missing < 0:
            raise ValueError(f"{name} of rank {rank} is written twice")
        self._missing[rank, name] = missing
        offset = self._starts[rank][1][name] + start * ITEM_SIZES[kind.dtype]
        self._writes.append(self._writers.submit(_write_all, self._descriptor(rank), values, offset))
        return values.numel()

    def finish_step(self, names: Mapping[int, Sequence[str]]) -> None:
        """Say that one more step is done, in which the tensors of `names` were written, by rank.

        It is saved beside the work that follows, unless the step before was not long ago for what that took.
        """
        self._check_written(names)
        try:
            for write in self._writes:
                write.result()
        except OSError as error:
            raise os_error(error, "write the rank files") from error
        self._writes.clear()
        self.done += 1
        if self._saving is not None:
            if not self._saving.done() or time.monotonic() < self._next_save:
                return
            self._saving.result()
        self._saving = self._saver.submit(self._save, self.done)

    def publish(self, out_dir: Path) -> None:
        """Make sure that everything is on the disk and as it was laid out; link the files into `out_dir`."""
        if self._saving is not None:
            self._saving.result()
        self._save(self.done)
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            for rank, layout in enumerate(self.layouts):
                path = self._path(rank)
                found = {
                    name: TensorType(entry.dtype, entry.shape) for name, entry in read_header(path).items()
                }
                if found != dict(layout):
                    raise BuildError(
                        "the rank file is not what was written",
                        where=str(path),
                        fix="see what else writes there, and run the same command again",
                    )
                _link(path, out_dir / path.name)
        except OSError as error:
            raise os_error(error, "put the rank files in place") from error

    def __enter__(self) -> RankFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for pool in (self._writers, self._saver):
            pool.shutdown(cancel_futures=True)
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    def _resumable(self) -> int:
        """How many steps the files in the directory are done with; 0 if they are none of ours."""
        try:
            state = json.loads((self.directory / _STATE_FILE).read_text(encoding="utf-8"))
            done, found = state["done"], state["fingerprint"]
        except (OSError, ValueError, TypeError, KeyError):
            return 0
        if type(done) is not int or found != self._fingerprint:
            return 0
        for rank in range(len(self.layouts)):
            path = self._path(rank)
            if not path.is_file() or path.stat().st_size != self._size(rank):
                return 0
        return done

    def _begin(self) -> None:
        """New files of full size, if there is room for them."""
        for path in (self.directory / _STATE_FILE, *map(self._path, range(len(self.layouts)))):
            path.unlink(missing_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < self.nbytes:
            raise StoreError(
                f"the rank files take {self.nbytes / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB free",
                where=str(self.directory),
                fix="free space, run `llmbuild store gc`, or point LLMBUILD_STORE at a larger disk",
            )
        for rank, (start, _) in enumerate(self._starts):
            os.pwrite(self._descriptor(rank), start, 0)
            os.ftruncate(self._descriptor(rank), self._size(rank))

    def _descriptor(self, rank: int) -> int:
        if rank not in self._descriptors:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptors[rank] = os.open(self._path(rank), flags, 0o644)
        return self._descriptors[rank]

    def _path(self, rank: int) -> Path:
        return self.directory / rank_file(rank)

    def _size(self, rank: int) -> int:
        data = sum(tensor.nbytes for tensor in self.layouts[rank].values())
        return len(self._starts[rank][0]) + data

    def _check_written(self, names: Mapping[int, Sequence[str]]) -> None:
        """Every tensor of a step whole, and no other begun."""
        expected = {(rank, name) for rank, own in names.items() for name in own}
        short = [key for key in expected if self._missing.get(key) != 0]
        if short or self._missing.keys() != expected:
            raise ValueError(f"a step wrote other tensors than it should, or not all of them: {short[:3]}")
        self._missing.clear()

    def _save(self, done: int) -> None:
        began = time.monotonic()
        for descriptor in list(self._descriptors.values()):
            os.fdatasync(descriptor)
        state = {"fingerprint": self._fingerprint, "done": done}
        write_text_file(self.directory / _STATE_FILE, json.dumps(state, indent=2) + "\n")
        took = time.monotonic() - began
        self._next_save = began + took / _SAVE_SHARE


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """Contiguous tensors that together are `values`, a part at a time."""
    if values.is_contiguous():
        yield values
        return
    rows = max(1, _CHUNK // max(1, values[0].numel() * values.element_size()))
    for start in range(0, values.shape[0], rows):
        yield values[start : start + rows].contiguous()


def _write_all(descriptor: int, values: Tensor, offset: int) -> None:
    """Write a tensor. One call of the system's writes at most 2 GiB."""
    for piece in _pieces(values):
        left: memoryview = as_bytes(piece.detach()).numpy().data
        while left:
            count = os.pwrite(descriptor, left, offset)
            left, offset = left[count:], offset + count


def _link(path: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system cannot do that."""
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
