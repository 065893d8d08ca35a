"""The part of the checklist that reads tensors: scales, fp8 codes, and what the ranks of a stage share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from toolchain.engine.tensorrt.decode import SUFFIXES
from toolchain.engine.tensorrt.rank import NORMS, ROUTERS, RankFile
from toolchain.findings import Finding
from toolchain.model.finite import count_non_finite, is_float

_SCALES = (*(suffix for suffix in SUFFIXES if suffix not in ("weight", "zero")), "act_scale")
_ROW_PARALLEL = ("attention.dense.", "mlp.proj.", "mlp.shared_expert.proj.")
# Of a column-parallel linear these describe the input, which all ranks of a stage have.
_OF_INPUT = ("prequant_scaling_factor", "activation_scaling_factor", "smoother")
_AGAIN = "convert the model again"


def value_findings(file: RankFile, *, weights: bool = True) -> Iterator[Finding]:
    """What is wrong with the values of a rank file whose tensors are those that belong there.

    Without `weights`, those of matrices are not read.
    """
    checkpoint = file.checkpoint
    for name in checkpoint.names:
        where = f"{file.config.rank_file(file.rank)}: {name}"
        suffix = name.rpartition(".")[2]
        if suffix == "weight" and not weights and len(checkpoint.shape(name)) > 1:
            continue
        if is_float(checkpoint.dtype(name)):
            count = count_non_finite(checkpoint.dtype(name), checkpoint.location(name), lambda _: None)
            if count:
                yield Finding(f"it holds {count} NaN or infinity", where, fix=_AGAIN)
                continue
        if suffix in _SCALES or suffix.endswith("cache_scaling_factor"):
            values = checkpoint.read(name).float()
            if bool((values <= 0).any()):
                yield Finding(
                    f"{int((values <= 0).sum())} of its {values.numel()} scales are not positive",
                    where,
                    "what they scale becomes zero, or turns its sign",
                    _AGAIN,
                )
            elif (
                suffix == "prequant_scaling_factor"
                and values.dim() == 2
                and bool((values != values[0]).any())
            ):
                yield Finding(
                    "experts have different scales",
                    where,
                    "TensorRT-LLM multiplies the input of all experts by the first one's",
                    "quantize the model again, with one scale for all experts of a layer",
                )


def shared_findings(files: Sequence[RankFile]) -> Iterator[Finding]:
    """What must be equal on the tensor-parallel ranks of a stage, and is not."""
    stages: dict[int, list[RankFile]] = {}
    for file in files:
        stages.setdefault(file.stage, []).append(file)
    for first, *others in stages.values():
        for name in first.checkpoint.names:
            if not _is_shared(name):
                continue
            value = first.checkpoint.read(name)
            for other in others:
                if not torch.equal(value, other.read(name)):
                    yield Finding(
                        f"it differs from rank {first.rank}'s",
                        f"{other.config.rank_file(other.rank)}: {name}",
                        "the ranks of a stage compute parts of one and the same layer",
                        _AGAIN,
                    )


def _is_shared(name: str) -> bool:
    if name == "transformer.ln_f.weight" or name.endswith("cache_scaling_factor"):
        return True
    short = name.split(".", 3)[-1] if name.startswith("transformer.layers.") else name
    module, _, suffix = short.rpartition(".")
    if short in NORMS or module in ROUTERS:
        return True
    if short.startswith(_ROW_PARALLEL):
        return suffix in ("bias", "activation_scaling_factor", "per_channel_scale")
    return suffix in _OF_INPUT
