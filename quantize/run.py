"""From a recipe's plain values to a quantized checkpoint: picks the method, loads the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantize.calibration import Calibration, load_calibration
from quantize.driver import Machine, quantize_model
from quantize.formats.base import Scheme
from quantize.formats.checkpoint import FORMATS, QuantizedCheckpoint, form_of
from quantize.formats.convert import AUTO, convert_checkpoint
from quantize.methods.registry import make_method
from quantize.providers.modelopt import quantize_with_modelopt
from quantize.search.mixed import Budget, Search, quantize_searched
from quantize.selection import Override, assign_methods
from toolchain.errors import QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.config_json import read_json_object
from toolchain.model.families import EMBEDDING
from toolchain.model.spec import load_spec
from toolchain.progress import Progress
from toolchain.text.files import TextFiles

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_METHOD_FIELDS = ("group_size", "symmetric", "clip", "act_order", "damp", "alpha")


def quantize_checkpoint(
    model_dir: Path,
    out_dir: Path,
    work_dir: Path,
    *,
    config: Mapping[str, Any],
    calibration_text: TextFiles | None = None,
    hidden_memory: int | None = None,
    divergence: Callable[[Path], float] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantize the model in `model_dir` as a recipe says. Everything else is as in `quantize_model`.

    A source that is quantized already is brought into the file form `format` (a form's name, or "auto") by
    the method "none"; any other method refuses it.

    Args:
        model_dir: the source model.
        out_dir: where the checkpoint goes.
        work_dir: the state to resume from.
        config: `method` and what else of a recipe's `quantization` it reads: the methods' own fields,
            `exclude`, `overrides`, `kv_cache` ("FP8" or "INT8"), `format`, `device`, `provider`, `search`
            (`candidates` and `max_bits`, `max_bytes`, `max_kl`); `dtype` ("auto", or the dtype that
            the source must have); with a `calibration_text`, `calibration`: `samples`, `seq_len`, `seed`.
        calibration_text: the calibration data; None for a method that needs none.
        hidden_memory: as in `Machine`.
        divergence: measures a quantized model, for a search with a budget of KL divergence.
        progress: is told of each layer.

    Returns:
        the report of `quantize_model`, and how many `calibration_documents` were drawn.
    """
    spec = load_spec(model_dir)
    stored = _DTYPES.get(Checkpoint.open(model_dir).dtype(EMBEDDING))
    wanted = config.get("dtype", "auto")
    if wanted not in ("auto", stored):
        raise QuantizeError(
            f"the model is stored as {stored}, not as {wanted}",
            where="model.dtype",
            why="weights are taken as they are stored; rounding them to another dtype would go unnoticed",
            fix="set model.dtype: auto",
        )
    if config["method"] == "none" and not config.get("overrides") and not config.get("kv_cache"):
        form = form_of(model_dir, read_json_object(model_dir / "config.json"))
        if form is not None:
            convert_checkpoint(model_dir, out_dir, config.get("format", AUTO), progress=progress)
            return {"method": {"method": "none"}, "seconds_per_layer": []}
    calibration: Calibration | None = None
    if calibration_text is not None:
        calibration = load_calibration(
            calibration_text,
            model_dir,
            vocab_size=spec.vocab_size,
            progress=progress,
            **{name: config["calibration"][name] for name in ("samples", "seq_len", "seed")},
        )
    if config.get("provider", "native") == "modelopt":
        return quantize_with_modelopt(
            model_dir, out_dir, work_dir, config=config, calibration=calibration, progress=progress
        )
    common: dict[str, Any] = {
        "exclude": config.get("exclude", ()),
        "overrides": [_override(config, own) for own in config.get("overrides", ())],
        "kv_cache": config.get("kv_cache"),
        "form": FORMATS.get(config.get("format", AUTO), FORMATS["modelopt"]),
        "machine": Machine(config.get("device", "auto"), hidden_memory),
        "events": progress,
    }
    if "search" in config:
        assert calibration is not None  # the recipe's rules see to it
        search = Search(
            {name: make_method(name, **_options(config)) for name in config["search"]["candidates"]},
            Budget(**{name: config["search"][name] for name in ("max_bits", "max_bytes", "max_kl")}),
            divergence,
        )
        report = quantize_searched(
            model_dir, out_dir, work_dir, search=search, calibration=calibration, **common
        )
    else:
        method = make_method(config["method"], **_options(config))
        report = quantize_model(
            model_dir, out_dir, work_dir, method=method, calibration=calibration, **common
        )
    return report | {"calibration_documents": calibration.documents if calibration else 0}


def planned_scheme(model_dir: Path, config: Mapping[str, Any]) -> Scheme | None:
    """How `quantize_checkpoint` will leave the model, found out without any work; None under a search.

    Args:
        model_dir, config: as there.
    """
    if "search" in config:
        return None
    source = QuantizedCheckpoint.open(model_dir)
    method = make_method(config["method"], **_options(config))
    overrides = [_override(config, own) for own in config.get("overrides", ())]
    assigned = assign_methods(load_spec(model_dir), method, config.get("exclude", ()), overrides)
    if source.form is not None and not assigned:
        return source.scheme
    return Scheme({name: own.scheme for name, own in assigned.items()}, (), config.get("kv_cache"))


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the methods that the configuration has."""
    return {name: config[name] for name in _METHOD_FIELDS if name in config}


def _override(config: Mapping[str, Any], own: Mapping[str, Any]) -> Override:
    """An entry of `overrides`: its method with the fields of the whole, but for a group size of its own."""
    options = _options(config)
    if own.get("group_size") is not None:
        options["group_size"] = own["group_size"]
    return Override(own["modules"], make_method(own["method"], **options))
