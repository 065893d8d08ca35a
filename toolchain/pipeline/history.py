"""What earlier builds took on this machine, from the records of the store, for the plan of the next one."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from toolchain.errors import LlmbuildError
from toolchain.model.spec import ModelSpec, load_spec
from toolchain.pipeline.files import Listing
from toolchain.pipeline.record import Record
from toolchain.pipeline.store import Store
from toolchain.plan.effort import Measured, Work
from toolchain.plan.memory import active_count, linear_count, weight_bytes

_NEWEST = 200
"""Records that are looked at, the newest ones: reading them is a part of the plan's time."""


def earlier_runs(store: Store) -> list[Measured]:
    """What the stages in `store` took whose models are still there; newest first.

    A record that does not tell what a plan needs is passed over, whoever wrote it.
    """
    records = []
    for path in sorted(store.records.glob("*.json"), key=_modified, reverse=True)[:_NEWEST]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            records.append(Record.from_bytes(path.read_bytes()))
    models = _Models(store, records)
    found = []
    for record in records:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, LlmbuildError):
            if (work := _work(record, models)) is not None:
                found.append(Measured(work, record.seconds, record.peak_memory))
    return found


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # collected meanwhile
        return 0.0


class _Models:
    """The spec of the model that a record is about: every checkpoint in the store has its config.json."""

    def __init__(self, store: Store, records: list[Record]) -> None:
        self._objects = store.objects
        self._specs: dict[str, ModelSpec] = {}
        self._checkpoints = {
            record.inputs["model"]: record.object for record in records if record.stage == "quantize"
        }

    def of(self, record: Record) -> ModelSpec:
        """Raises KeyError or ModelError where that is not known any more."""
        if record.stage == "quantize":
            digest = record.object
        else:
            digest = record.inputs.get("quantize") or self._checkpoints[record.inputs["model"]]
        if digest not in self._specs:
            self._specs[digest] = load_spec(self.directory(digest))
        return self._specs[digest]

    def directory(self, digest: str) -> Path:
        return self._objects / digest / "data"

    def size(self, digest: str) -> int:
        """Bytes of an object."""
        return Listing.from_bytes((self._objects / digest / "files.json").read_bytes()).size


def _work(record: Record, models: _Models) -> Work | None:
    """What the stage had to do; None for one that the plan does not estimate."""
    spec = models.of(record)
    model, source, config = (linear_count(spec), active_count(spec)), weight_bytes(spec).total, record.config
    device = config.get("device", "cpu")
    if record.stage == "source":
        return Work("source", "", "cpu", *model, source)
    if record.stage == "quantize":
        calibration = config.get("calibration", {"samples": 0, "seq_len": 0})
        runs = 1 + len(config["search"]["candidates"]) if "search" in config else 1
        tokens = runs * calibration["samples"] * calibration["seq_len"]
        return Work("quantize", config["method"], device, *model, source, tokens)
    if record.stage == "baseline":
        tokens = config["windows"] * (config["window"] or min(2048, spec.max_position_embeddings))
        return Work("baseline", "", device, *model, source, tokens)
    if record.stage == "gate":
        judged = json.loads((models.directory(record.object) / "gate.json").read_bytes())["texts"]
        tokens = sum(text["windows"] * text["window"] for text in judged.values())
        return Work("gate", "", device, *model, source, tokens)
    if record.stage == "engine":
        runs_on = "cpu" if config["flavour"] == "openvino" else "cuda"
        return Work("engine", config["flavour"], runs_on, *model, models.size(record.object))
    if record.stage == "convert":
        return Work("convert", "", "cpu", *model, 2 * models.size(record.object))
    return None
