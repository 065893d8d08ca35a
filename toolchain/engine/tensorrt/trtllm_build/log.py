"""What `trtllm-build` says while it works: progress, its version, warnings, and why it failed."""

from __future__ import annotations

import re
from collections import deque

from toolchain.errors import ToolchainError
from toolchain.progress import Progress

_VERSION = re.compile(r"TensorRT[- ]LLM version: (\S+)")
_MESSAGE = re.compile(r"\[TRT(?:-LLM)?\] \[([WEF])\] (.+)")
_NETWORK = re.compile(r"constructing network from module object ([\d.]+) sec")
_GENERATED = re.compile(r"Engine generation completed in ([\d.]+) sec")
_SERIALIZED = "Engine serialized."
_PEAK = re.compile(r"Build phase peak memory: ([\d.]+) MB, children: ([\d.]+) MB")
_EXPECTED = ("Implicitly setting",)  # one for every key of a checkpoint that the model class does not declare

_LAST_LINES = 8
_MOST_WARNINGS = 20

_CAUSES = (
    (
        re.compile(r"out of memory|OutOfMemory|std::bad_alloc|Cannot allocate memory", re.IGNORECASE),
        "lower engine.max_num_tokens, engine.max_batch_size or engine.build.workers",
    ),
    (
        re.compile(r"unrecognized arguments|invalid choice"),
        "set engine.version to the version of the trtllm-build that runs, which does not know a flag",
    ),
    (
        re.compile(r"No space left on device|Disk quota exceeded"),
        "free space, or point LLMBUILD_STORE at a larger disk",
    ),
    (
        re.compile(r"no kernel image is available|Unsupported SM|not supported on SM", re.IGNORECASE),
        "choose another GPU or quantization.method: `llmbuild compat` says which go together",
    ),
    (
        re.compile(r"could not select device driver|unresolvable CDI devices|nvidia-container-cli"),
        "install the NVIDIA container toolkit, and set it up for this container engine",
    ),
    (
        re.compile(r"pull access denied|manifest unknown|unauthorized|no such host", re.IGNORECASE),
        "pull the container image first, or name another one as engine.build.image",
    ),
)


class BuildLog:
    """Reads the log line by line; what it cannot read stays in the file and is nobody's loss.

    Args:
        version: the TensorRT-LLM that the recipe is for.
        progress: told of each finished rank, of phases and warnings.
    """

    def __init__(self, version: str, progress: Progress) -> None:
        self._version = version
        self._progress = progress
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._warned: set[str] = set()
        self.ranks = 0
        """Ranks whose engines are written."""
        self.peak_mb: float | None = None
        """Largest host memory of a rank, in MB, as trtllm-build measures it."""
        self._fix: str | None = None

    def feed(self, line: str) -> None:
        """Take one line.

        Raises:
            ToolchainError: the trtllm-build that runs is of another version; better now than in an hour.
        """
        self._last.append(line)
        if found := _VERSION.search(line):
            self._check(found[1])
        elif _SERIALIZED in line:
            self.ranks += 1
            self._progress.advance()
        elif found := _NETWORK.search(line):
            self._progress.note(f"network constructed in {float(found[1]):.0f} s; choosing kernels")
        elif found := _GENERATED.search(line):
            self._progress.note(f"kernels chosen in {float(found[1]):.0f} s")
        elif found := _PEAK.search(line):
            self.peak_mb = max(self.peak_mb or 0.0, float(found[1]) + float(found[2]))
        elif (found := _MESSAGE.search(line)) and not found[2].startswith(_EXPECTED):
            self._warn(found[2])
        for pattern, fix in _CAUSES:
            if pattern.search(line):
                self._fix = fix

    @property
    def last_lines(self) -> str:
        """The end of the log, indented as an error shows it."""
        return "\n       ".join(self._last)

    def fix(self, status: int) -> str | None:
        """What most likely mends a build that ended with `status`; None if the log does not say."""
        if self._fix is None and status in (-9, 137):
            return "lower engine.build.workers: the kernel kills a process when memory runs out"
        return self._fix

    def _check(self, found: str) -> None:
        if found != self._version:
            raise ToolchainError(
                f"trtllm-build is of TensorRT-LLM {found}, and the recipe is for {self._version}",
                where="engine.version",
                why="an engine runs only on the version that built it",
                fix=f"set engine.version to {found}, or build with the container of {self._version}: "
                "--set engine.build.executor=docker",
            )

    def _warn(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(text)
            self._progress.note(f"trtllm-build: {text}")
