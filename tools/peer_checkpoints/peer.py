"""What a module of this package offers for its tool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor


class Peer(Protocol):
    """A quantizer.

    Attributes:
        PACKAGES: distributions whose versions are noted; the tool's own first.
        KINDS: what it can write, by the name of the directory, with a few words on each.
        SOURCE_OF: the source model of those kinds that do not start from the Llama.
        EXPECTED: how `dequantize` computes, for the README.
    """

    PACKAGES: tuple[str, ...]
    KINDS: Mapping[str, str]
    SOURCE_OF: Mapping[str, str]
    EXPECTED: str

    def write(self, kind: str, source: Path, out: Path) -> None:
        """Quantize the model in `source` and save it to `out`, which does not exist."""

    def dequantize(self, directory: Path) -> dict[str, Tensor]:
        """The weights [out, in] of a checkpoint's quantized linears, as the tool computes them, by name."""
