"""nvidia-modelopt as the quantizer: the whole model in memory, NVIDIA's own calibration.

Needs nvidia-modelopt (written against 0.47) and transformers. The export goes into the working directory;
from there its tensors are written the way our own quantizer's are, so that configuration and tokenizer are
the source's, and `config.json` comes last: when killed, nothing in the output looks whole. It does not
resume.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from quantize.calibration import Calibration
from quantize.device import choose_device
from quantize.formats.checkpoint import FORMATS, QuantizedCheckpoint, write_checkpoint
from quantize.formats.tensorfile import StoredTensor, write_text_file
from quantize.methods.registry import make_method
from quantize.selection import assign_methods, check_shapes
from toolchain.errors import QuantizeError, ToolchainError, os_error
from toolchain.model.spec import load_spec
from toolchain.progress import Progress, Silent

REPORT_FILE = "quantization_report.json"
INSTALL = "pip install 'llmbuild[modelopt]'"

_PRESETS = {
    "awq": "INT4_AWQ_CFG",
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_rowwise": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int8_wo": "INT8_WEIGHT_ONLY_CFG",
    "int4_wo": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
"""Our name of a method -> ModelOpt's preset."""
_PRESET_GROUP = 128
_SMOOTHQUANT_ALPHA = 1.0  # ModelOpt's own


def unsupported(config: Mapping[str, Any]) -> list[str]:
    """What of a quantization's configuration (`quantize.run`) ModelOpt cannot do here; empty if nothing."""
    problems = []
    if config["method"] not in _PRESETS:
        problems.append(f"method {config['method']}; it has {', '.join(_PRESETS)}")
    if config.get("overrides"):
        problems.append("overrides")
    if not config.get("symmetric", True):
        problems.append("asymmetric codes")
    if config.get("kv_cache") not in (None, "FP8"):
        problems.append(f"a KV cache of {config['kv_cache']}")
    if config.get("format", "modelopt") not in ("auto", "modelopt"):
        problems.append(f"the file form {config['format']}")
    return problems


def quantize_with_modelopt(
    source_dir: Path,
    out_dir: Path,
    work_dir: Path,
    *,
    config: Mapping[str, Any],
    calibration: Calibration | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `source_dir`, quantized by ModelOpt, to `out_dir` in ModelOpt's unified Hugging Face form.

    Args:
        source_dir: a plain model of a supported family.
        out_dir: made if need be; whole when it holds `config.json`.
        work_dir: takes the export, which is as large as the quantized model, until it is copied.
        config: as in `quantize.run`. `clip` takes AWQ's full search, which is slow, and not the lite one.
        calibration: the tokens; None for a method that looks at no activations.
        progress: is told of the three steps.

    Returns:
        what `quantization_report.json` says.

    Raises:
        ToolchainError: ModelOpt is not there, or the device is not.
        QuantizeError: ModelOpt cannot do what is asked, or fails.
        StoreError: the file system refuses.
    """
    problems = unsupported(config)
    if problems:
        raise QuantizeError(
            "the provider modelopt cannot do this",
            where="quantization.provider",
            why=f"not available there: {'; '.join(problems)}",
            fix="use provider: native",
        )
    mtq, export = _modelopt()
    progress = progress or Silent()
    spec = load_spec(source_dir)
    options = {name: config[name] for name in ("group_size",) if name in config}
    method = make_method(config["method"], **options)
    assert method is not None
    methods = assign_methods(spec, method, config.get("exclude", ()))
    check_shapes(spec, methods)
    if calibration is None and (method.needs_calibration or config.get("kv_cache")):
        raise QuantizeError(
            "the method needs calibration data",
            where="quantization",
            fix="give calibration: {dataset: file:calibration.txt}",
        )
    device = choose_device(config.get("device", "auto"))
    progress.note("ModelOpt quantizes with the whole model in memory, and starts again when interrupted")
    progress.start("quantize", 3, "steps")
    model = _load(source_dir, device)
    progress.advance()

    def forward(quantized: Any) -> None:
        assert calibration is not None
        for tokens_S in calibration.tokens:
            quantized(tokens_S[None].to(device))

    exported = work_dir / "export"
    try:
        torch.manual_seed(0 if calibration is None else calibration.seed)
        with torch.no_grad():
            settings = _settings(mtq, config, [name for name in _linears(model) if name not in methods])
            model = mtq.quantize(model, settings, None if calibration is None else forward)
            progress.advance()
            shutil.rmtree(exported, ignore_errors=True)
            with torch.inference_mode():
                export(model, dtype=model.dtype, export_dir=exported)
    except OSError as error:
        raise os_error(error, "write ModelOpt's export") from error
    except Exception as error:  # whatever ModelOpt raises: its classes are not documented
        raise QuantizeError(
            "ModelOpt failed",
            where="quantization.provider",
            why=f"{type(error).__name__}: {error}",
            fix="use provider: native",
        ) from error
    report = {
        "provider": f"nvidia-modelopt {version('nvidia-modelopt')}",
        "method": {"method": config["method"]},
        "calibration": None if calibration is None else calibration.digest,
        "seed": 0 if calibration is None else calibration.seed,
        "calibration_tokens": 0 if calibration is None else calibration.tokens.numel(),
    }
    _write(source_dir, exported, out_dir, report)
    shutil.rmtree(exported, ignore_errors=True)
    progress.advance()
    return report | {"seconds_per_layer": []}


def _modelopt() -> tuple[ModuleType, Any]:
    """`modelopt.torch.quantization`, and the exporter."""
    try:
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint
    except ImportError as error:
        raise ToolchainError(
            "nvidia-modelopt cannot be imported",
            where="quantization.provider",
            why=str(error),
            fix=f"{INSTALL}, or use provider: native",
        ) from error
    return mtq, export_hf_checkpoint


def _load(source_dir: Path, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source_dir, dtype="auto", local_files_only=True)
    return model.to(device).eval()


def _linears(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _settings(mtq: ModuleType, config: Mapping[str, Any], left_alone: Sequence[str]) -> dict[str, Any]:
    """ModelOpt's configuration: the preset with our group size, exclusions, KV cache and algorithm."""
    name: str = config["method"]
    settings: dict[str, Any] = copy.deepcopy(getattr(mtq, _PRESETS[name]))
    for entry in settings["quant_cfg"]:
        parts = entry.get("cfg") or {}
        for part in parts if isinstance(parts, list) else [parts]:
            blocks = part.get("block_sizes") or {}
            if blocks.get(-1) == _PRESET_GROUP:
                blocks[-1] = config.get("group_size", _PRESET_GROUP)
    settings["quant_cfg"] += [{"quantizer_name": f"{module}.*", "enable": False} for module in left_alone]
    if config.get("kv_cache"):
        settings["quant_cfg"] += copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
    if name == "int8_sq":
        alpha = config.get("alpha")
        settings["algorithm"] = {
            "method": "smoothquant",
            "alpha": _SMOOTHQUANT_ALPHA if alpha is None else alpha,
        }
    if name in ("awq", "w4a8_awq"):
        settings["algorithm"] = {"method": "awq_full" if config.get("clip", True) else "awq_lite"}
    return settings


def _write(source_dir: Path, exported: Path, out_dir: Path, report: Mapping[str, Any]) -> None:
    """The export's tensors as one of our checkpoints."""
    checkpoint = QuantizedCheckpoint.open(exported)
    stored = checkpoint.checkpoint
    tensors = {
        name: StoredTensor(stored.dtype(name), stored.shape(name), stored.location(name))
        for name in stored.names
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text_file(out_dir / REPORT_FILE, json.dumps(report, indent=2) + "\n")
    write_checkpoint(source_dir, out_dir, tensors, checkpoint.scheme, FORMATS["modelopt"])
