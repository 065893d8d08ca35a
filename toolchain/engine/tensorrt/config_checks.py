"""The part of the checklist that `config.json` and the names of the files decide."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from packaging.version import InvalidVersion, Version

from quantize.formats.base import MIXED, W4A8_AWQ
from toolchain.data import load_table
from toolchain.engine.tensorrt.decode import DECODED, ROW_PAIRS
from toolchain.engine.tensorrt.rank_config import DEFAULT_EXCLUDE, PLAIN_ALGOS, RankConfig
from toolchain.engine.tensorrt.size_checks import size_findings
from toolchain.findings import WARNING, Finding

QUANTIZATION_KEYS = (
    *("quant_algo", "kv_cache_quant_algo", "group_size", "smoothquant_val", "clamp_val", "use_meta_recipe"),
    *("has_zero_point", "pre_quant_scale", "exclude_modules", "mamba_ssm_cache_dtype"),
)
"""Every key that TensorRT-LLM knows in `quantization`; it refuses others."""

_PROCESSED = ("W4A16_GPTQ", "W8A16_GPTQ")
_OTHER_ALGOS = (
    *("W4A8_QSERVE_PER_GROUP", "W4A8_QSERVE_PER_CHANNEL", "FP8_BLOCK_SCALES", "INT8", "NO_QUANT"),
    *("W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8", "W4A8_MXFP4_MXFP8", "W4A16_MXFP4"),
)
_CHECKED = (*PLAIN_ALGOS, *DECODED, MIXED)
_CACHES = ("INT8", "FP8")
_AGAIN = "convert the model again"


def config_findings(config: RankConfig, target: str | None = None) -> Iterator[Finding]:
    """What is wrong with `config.json`, whatever the rank files hold.

    Args:
        config: of the checkpoint.
        target: the version of TensorRT-LLM that will build the engine.
    """
    yield from _model(config)
    yield from _quantization(config)
    yield from _mapping(config)
    yield from size_findings(config)
    if target is not None:
        yield from _version(config, target)


def _where(config: RankConfig, key: str) -> str:
    return f"{config.directory / 'config.json'}: {key}"


def _model(config: RankConfig) -> Iterator[Finding]:
    values, spec = config.values, config.spec
    kind = values.get("position_embedding_type", "learned_absolute")
    if kind not in ("rope_gpt_neox", "yarn", "long_rope"):
        yield Finding(
            f"it is {kind!r}",
            _where(config, "position_embedding_type"),
            f"{spec.architecture} rotates the halves of its heads",
            'set it to "rope_gpt_neox"',
        )
    if bool(values.get("qk_layernorm", False)) != spec.qk_norm and spec.qk_norm:
        yield Finding(
            "it is not set",
            _where(config, "qk_layernorm"),
            f"{spec.architecture} normalizes its queries and keys; TensorRT-LLM would leave that out",
            "set it to true",
        )


def _quantization(config: RankConfig) -> Iterator[Finding]:
    quantization, algo = config.quantization, config.quant_algo
    for key in sorted(set(quantization) - set(QUANTIZATION_KEYS)):
        yield Finding(
            f"{key} is no key of TensorRT-LLM's",
            _where(config, "quantization"),
            "it is read into a dataclass, which refuses unknown keys",
            f"remove {key}, or put it beside `quantization`",
        )
    if algo in _PROCESSED:
        yield Finding(
            f"the weights of {algo} are stored as one kind of GPU wants them, which the file does not name",
            _where(config, "quantization.quant_algo"),
            "an engine for another kind would compute nonsense",
            "convert with llmbuild, which stores symmetric GPTQ as W4A16_AWQ",
            WARNING,
        )
    elif algo is not None and algo not in _CHECKED:
        known = algo in _OTHER_ALGOS
        yield Finding(
            f"{algo} is {'not checked here' if known else 'no quant_algo of TensorRT-LLM'}",
            _where(config, "quantization.quant_algo"),
            fix="" if known else f"one of {', '.join((*_CHECKED, *_PROCESSED))}",
            level=WARNING if known else "error",
        )
    group = quantization.get("group_size")
    if algo in ROW_PAIRS and (type(group) is not int or group < 1):
        yield Finding(
            f"it is {group!r}",
            _where(config, "quantization.group_size"),
            f"TensorRT-LLM would take 128 for {algo}, whatever the scales say",
            "write the number of input channels that share a scale",
        )
    elif (algo in ROW_PAIRS and group not in (64, 128)) or (algo == W4A8_AWQ and group != 128):
        yield Finding(
            f"it is {group}",
            _where(config, "quantization.group_size"),
            f"kernels are known for groups of {'128' if algo == W4A8_AWQ else '64 and 128'}",
            "quantize with one of these",
            WARNING,
        )
    cache = config.kv_cache_quant_algo
    if cache is not None and cache not in _CACHES:
        yield Finding(f"it is {cache}", _where(config, "quantization.kv_cache_quant_algo"), fix="INT8 or FP8")
    if algo == MIXED and not config.mixed:
        yield Finding(
            "no layer is listed",
            f"{config.directory / 'quant_cfg.json'}: quantized_layers",
            "with MIXED_PRECISION every quantized module is named there",
            _AGAIN,
        )
    if algo is not None:
        yield from _exclusions(config)


def _exclusions(config: RankConfig) -> Iterator[Finding]:
    listed = config.quantization.get("exclude_modules")
    where = _where(config, "quantization.exclude_modules")
    if not listed:
        return
    if config.quant_algo in PLAIN_ALGOS:
        lacking = [name for name in DEFAULT_EXCLUDE[:6] if name not in listed]
        if lacking:
            yield Finding(
                f"it lacks {', '.join(lacking)}",
                where,
                f"{config.quant_algo} quantizes every module that is not listed, the embedding too",
                "set it to null, which means the complete list",
            )
        return
    wanted = ["lm_head"]
    if config.spec.moe is not None:
        wanted += ["transformer.layers.0.mlp.router"]
    for module in wanted:
        if not any(fnmatchcase(module, pattern) for pattern in listed):
            yield Finding(
                f"{module} is not excluded",
                where,
                "a list replaces TensorRT-LLM's own, and this module is stored unquantized",
                f'add "*{module.rpartition(".")[2]}"',
            )
    numbered = [name for name in listed if "layers." in name and "*" not in name]
    if config.mapping.pp > 1 and any(not name.endswith("router") for name in numbered):
        yield Finding(
            f"{numbered[0]} names one layer",
            where,
            "every stage counts its layers from 0, so the name means another layer in each",
            "exclude by a pattern that means the same in every stage",
            WARNING,
        )


def _mapping(config: RankConfig) -> Iterator[Finding]:
    mapping, directory = config.mapping, config.directory
    said = config.values.get("mapping", {}).get("world_size", 1)
    if said != mapping.tp * mapping.pp * mapping.cp:
        yield Finding(
            f"it is {said}, and tp {mapping.tp} x pp {mapping.pp} x cp {mapping.cp} is "
            f"{mapping.tp * mapping.pp * mapping.cp}",
            _where(config, "mapping.world_size"),
            fix="set it to the product",
        )
    if config.spec.moe is not None and mapping.moe_tp * mapping.moe_ep != mapping.tp:
        yield Finding(
            f"moe_tp_size {mapping.moe_tp} x moe_ep_size {mapping.moe_ep} is not tp_size {mapping.tp}",
            _where(config, "mapping"),
            fix=_AGAIN,
        )
    for rank in range(mapping.files):
        if not config.rank_file(rank).is_file():
            yield Finding(
                "the file is missing",
                str(config.rank_file(rank)),
                f"tp {mapping.tp} x pp {mapping.pp} makes {mapping.files} of them",
                "copy it too, or convert the model again",
            )
    for file in sorted(directory.glob("rank*.safetensors")):
        number = file.stem.removeprefix("rank")
        if number.isdigit() and int(number) >= mapping.files:
            yield Finding(
                "no rank reads this file",
                str(file),
                f"tp {mapping.tp} x pp {mapping.pp} makes {mapping.files} of them; it may be of another "
                "conversion",
                "remove it",
                WARNING,
            )


def _version(config: RankConfig, target: str) -> Iterator[Finding]:
    bounds = load_table("flavours")["tensorrt"]
    try:
        version = Version(target)
    except InvalidVersion:
        yield Finding(
            f"{target!r} is no version", str(config.directory), fix="name one such as 1.2.1", level=WARNING
        )
        return
    if version >= Version(bounds["before"]):
        yield Finding(
            f"TensorRT-LLM {target} builds no engines",
            str(config.directory),
            f"{bounds['last_stable']} is the last stable version that does",
            f"build with {bounds['last_stable']}, or take the flavour pytorch",
        )
    if "mamba_ssm_cache_dtype" in config.quantization and version < Version("1.1"):
        yield Finding(
            f"mamba_ssm_cache_dtype is unknown to TensorRT-LLM {target}",
            _where(config, "quantization"),
            "it came with 1.1",
            "remove it",
        )
