"""The resumable state of a quantization: finished layers, and the hidden states that enter the next one.

In the working directory:
    fingerprint.json            what the state belongs to
    hidden-00003.safetensors    the hidden states that enter layer 3
    layer-00002.safetensors     layer 2, finished, in its stored form; its report is in the metadata

Every file appears whole or not at all: layer i being there is the mark that it is finished. Hidden states are
saved now and then; those of a later layer follow from them and the finished layers. A kill at any instant
loses at most the layer in work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from quantize.formats.tensorfile import StoredTensor, write_tensor_file, write_text_file
from toolchain.errors import QuantizeError, os_error
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.safetensors_file import read_header

_HIDDEN = "hidden"


class WorkDir:
    """The state in directory `path`, of a quantization that `fingerprint` (JSON values) describes.

    Raises:
        QuantizeError: the directory holds the state of another quantization.
        StoreError: the file system refuses.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            for partial in path.glob(".*.partial"):
                partial.unlink()
        except OSError as error:
            raise os_error(error, "prepare the working directory") from error
        self._claim(json.loads(json.dumps(fingerprint)))

    def finished_layers(self) -> int:
        """How many layers, from the first, are finished."""
        count = 0
        while self.layer_file(count).exists():
            count += 1
        return count

    def layer_file(self, layer: int) -> Path:
        """Where finished layer `layer` is, or will be."""
        return self.path / f"layer-{layer:05d}.safetensors"

    def save_hidden(self, layer: int, hidden: Tensor) -> None:
        """Keep the hidden states that enter `layer`."""
        write_tensor_file(self._hidden_file(layer), {_HIDDEN: StoredTensor.of(hidden)})

    def load_hidden(self, layer: int) -> Tensor:
        """The hidden states that enter `layer`, as a map of the file."""
        file = self._hidden_file(layer)
        return Checkpoint(self.path, read_header(file)).view(_HIDDEN)

    def latest_hidden(self, layer: int) -> int | None:
        """The last layer up to `layer` whose incoming hidden states are there."""
        return next((at for at in range(layer, -1, -1) if self._hidden_file(at).exists()), None)

    def drop_hidden(self, before: int) -> None:
        """Remove the hidden states that enter layers before `before`."""
        for layer in range(before):
            self._hidden_file(layer).unlink(missing_ok=True)

    def finish_layer(self, layer: int, tensors: Mapping[str, Tensor], report: Mapping[str, Any]) -> None:
        """Keep a finished layer."""
        stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
        write_tensor_file(self.layer_file(layer), stored, {"report": json.dumps(report)})

    def layer_report(self, layer: int) -> dict[str, Any]:
        """The report given to `finish_layer`."""
        with self.layer_file(layer).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        report: dict[str, Any] = json.loads(header["__metadata__"]["report"])
        return report

    def _hidden_file(self, layer: int) -> Path:
        return self.path / f"hidden-{layer:05d}.safetensors"

    def _claim(self, fingerprint: Mapping[str, Any]) -> None:
        """Write the fingerprint into an empty directory; compare it with the one of a used directory."""
        path = self.path / "fingerprint.json"
        if not path.exists():
            write_text_file(path, json.dumps(fingerprint, indent=2, sort_keys=True) + "\n")
            return
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise QuantizeError(
                "the working directory's state cannot be read",
                where=str(path),
                why=str(error),
                fix="delete the directory and run the same command again",
            ) from error
        different = sorted(
            key for key in found.keys() | fingerprint.keys() if found.get(key) != fingerprint.get(key)
        )
        if different:
            raise QuantizeError(
                "the working directory holds the state of another quantization",
                where=str(self.path),
                why="; ".join(
                    f"{key}: {found.get(key)!r} there, {fingerprint.get(key)!r} here" for key in different
                ),
                fix="delete the directory, or name another one",
            )
