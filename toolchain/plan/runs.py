"""What can run weights of certain algorithms: flavours, their containers, and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolchain.plan.kernels import FLAVOURS, Support, support
from toolchain.plan.releases import default_version, release

_UNREAD = {"gptq": ("pytorch",), "awq": ("pytorch",)}
"""File form -> flavours whose runtime does not read it; `llmbuild build` brings it into one that it does."""


@dataclass(frozen=True)
class Runner:
    """One way to run something.

    Args:
        flavour: an engine flavour.
        container: the image to take; empty where the tables name none, or none is needed.
        version: of TensorRT-LLM in it; empty likewise.
        gpus: names of the GPUs in the tables that have the kernels; none where there is no GPU.
        note: what else is to know.
    """

    flavour: str
    container: str = ""
    version: str = ""
    gpus: tuple[str, ...] = ()
    note: str = ""


def runners(
    schemes: Iterable[tuple[str | None, int | None]],
    kv_cache: str | None = None,
    *,
    form: str | None = None,
    flavours: Sequence[str] = FLAVOURS,
) -> list[Runner]:
    """Who runs weights that are quantized in these ways, with that KV cache.

    Args:
        schemes: of the linears, each an algorithm in TensorRT-LLM's words (None: plain) and a group size.
        kv_cache: "FP8", "INT8" or None.
        form: the file form of the checkpoint.
        flavours: those of interest.
    """
    table = support()
    rows: list[Support] = []
    odd_groups = False
    for algo, group in schemes:
        row = next(
            (row for row in table if row.quant_algo == algo and not row.method.startswith("kv_")), None
        )
        if row is None:
            return []
        rows.append(row)
        odd_groups |= bool(row.groups) and group is not None and group not in row.groups
    if kv_cache is not None:
        rows += [row for row in table if row.method == f"kv_{kv_cache.lower()}"]
    if odd_groups:  # no GPU kernels
        flavours = [flavour for flavour in flavours if flavour == "openvino"]
    found = []
    for flavour in flavours:
        weights_only = [row for row in rows if flavour == "openvino" and not row.method.startswith("kv_")]
        needed = weights_only or rows
        if any(flavour not in row.gpus for row in needed):
            continue
        gpus = [set(row.gpus[flavour]) for row in needed]
        common = tuple(gpu for gpu in needed[0].gpus[flavour] if all(gpu in one for one in gpus))
        if flavour != "openvino" and not common:
            continue
        version = default_version(flavour) if flavour in ("tensorrt", "pytorch") else ""
        known = release(version)
        note = (
            f"after `llmbuild build`: it does not read the form {form}"
            if flavour in _UNREAD.get(form or "", ())
            else ""
        )
        found.append(Runner(flavour, known.image or "" if known else "", version, common, note))
    return found
