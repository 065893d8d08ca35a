"""What the quantize stage depends on: the part of the recipe that decides its bytes, and the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolchain.plan.device import has_nvidia
from toolchain.recipe.quantization import READ_BY
from toolchain.recipe.section import size_bytes

if TYPE_CHECKING:
    from toolchain.recipe.quantization import Quantization


def quantize_config(quant: Quantization, flavour: str) -> dict[str, Any]:
    """The values that the output depends on, for `quantize.run`; a field that no method reads is left out.

    Raises:
        ToolchainError: the recipe asks for a GPU, and there is none.
    """
    # Without calibration fp8 keys and values have a scale of 1, which no checkpoint needs to say.
    kv_cache = quant.kv_cache.upper() if quant.kv_cache != "auto" and quant.calibrates else None
    config: dict[str, Any] = {"method": quant.method}
    if quant.method == "none":
        # Only a source that is quantized already has a form. openvino reads all that we do; vLLM reads every
        # published one, but not every one converted to ModelOpt's.
        several = {"openvino": "auto", "vllm": "own"} if quant.format == "auto" else {}
        config["format"] = several.get(flavour) or quant.file_form(flavour)
    if quant.methods:
        config |= {name: getattr(quant, name) for name, by in READ_BY.items() if quant.methods & by}
        config |= {"exclude": list(quant.exclude), "format": quant.file_form(flavour)}
        config["overrides"] = [override.model_dump() for override in quant.overrides]
        if quant.provider != "native":
            config["provider"] = quant.provider
    if quant.search is not None:
        size = quant.search.max_size
        config["search"] = {
            "candidates": list(quant.search.candidates),
            "max_bits": quant.search.max_bits,
            "max_bytes": None if size is None else size_bytes(size),
            "max_kl": quant.search.max_kl,
        }
    if kv_cache is not None:
        config["kv_cache"] = kv_cache
    if quant.methods or kv_cache is not None:
        config["device"] = device_type(quant.device)
    return config


def device_type(wanted: str) -> str:
    """ "cpu" or "cuda": where quantization will compute."""
    if wanted == "cpu" or (wanted == "auto" and not has_nvidia()):
        return "cpu"  # as torch would say, without the second that it takes to load
    from quantize.device import choose_device

    return choose_device(wanted).type
