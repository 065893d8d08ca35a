"""Who runs what: quantization methods and KV caches by flavour, GPU generation and version, from `data/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.version import Version

from toolchain.data import load_table
from toolchain.errors import PlanError, UsageError
from toolchain.plan.quantization import defaults

if TYPE_CHECKING:
    from toolchain.recipe.quantization import Quantization

_METHOD, _OVERRIDES = "quantization.method", "quantization.overrides"
_CANDIDATES = "quantization.search.candidates"

FLAVOURS = ("tensorrt", "pytorch", "vllm", "openvino")


def version_problems(flavour: str, version: str | None) -> list[PlanError]:
    """Why the runtime's `version` cannot be used for `flavour`; empty when it can, or is not given."""
    known = load_table("flavours").get(flavour)
    if known is None or version is None:
        return []
    given = Version(version)
    before, last = known.get("before"), known.get("last_stable")
    if given < Version(known["first"]):
        fix = f"use {known['first']} or newer"
        why = f"the {flavour} flavour begins with TensorRT-LLM {known['first']}"
    elif before is not None and given >= Version(before):
        fix = f"use {last}, or engine.flavour pytorch"
        why = f"TensorRT-LLM builds no engines any more; {last} is the last stable version that does"
    else:
        return []
    return [
        PlanError(
            f"TensorRT-LLM {version} does not work with the {flavour} flavour",
            where="engine.version",
            why=why,
            fix=fix,
        )
    ]


def kernel_problems(quant: Quantization, flavour: str, gpu: str | None) -> list[PlanError]:
    """Why some method or the KV cache of `quant` cannot run; empty when all can.

    Args:
        quant: the recipe's section.
        flavour: the engine flavour.
        gpu: a row of `data/gpus.yaml`; None where it is not known.
    """
    size = quant.group_size
    uses = [(method, size, _CANDIDATES if quant.search else _METHOD) for method in defaults(quant)]
    uses += [(own.method, own.group_size or size, _OVERRIDES) for own in quant.overrides]
    if quant.kv_cache != "auto":
        uses.append((f"kv_{quant.kv_cache}", size, "quantization.kv_cache"))
    problems: dict[str, PlanError] = {}
    for name, group_size, where in uses:
        problem = _no_kernel(name, where, flavour, gpu)
        groups = load_table("quant_algos")[name].get("groups", [group_size])
        if problem is None and flavour != "openvino" and group_size not in groups:
            problem = PlanError(
                f"{name} has no kernel for groups of {group_size}",
                where=where.replace("method", "group_size"),
                fix=f"set its group size to {' or '.join(map(str, groups))}",
            )
        if problem is not None:
            problems.setdefault(problem.what, problem)
    return list(problems.values())


def _no_kernel(name: str, where: str, flavour: str, gpu: str | None) -> PlanError | None:
    """Why `name`, a row of `data/quant_algos.yaml`, does not run on a flavour and a GPU; None if it does."""
    row = load_table("quant_algos")[name]
    value, field = name.removeprefix("kv_"), where.split(".")[1]
    runs = row.get(flavour)
    if runs is None:
        able = [other for other in FLAVOURS if other in row]
        return PlanError(
            f"{value} does not run on the {flavour} flavour",
            where=where,
            why=row.get("note"),
            fix=f"choose engine.flavour {' or '.join(able)}, or another {field}",
        )
    gpus = load_table("gpus")
    if runs is True or gpu not in gpus or gpus[gpu]["sm"] in runs:
        return None
    able = [other for other, facts in gpus.items() if facts["sm"] in runs]
    return PlanError(
        f"{value} has no kernel on {gpu} (compute capability {gpus[gpu]['sm'] / 10:.1f}) on the {flavour} "
        "flavour",
        where=where,
        fix=f"choose one of {', '.join(able)} as engine.gpu, or another {field}",
    )


@dataclass(frozen=True)
class Support:
    """Where one quantization method runs.

    Args:
        method: as in a recipe; "kv_fp8" and "kv_int8" are KV caches.
        quant_algo: TensorRT-LLM's word for it; None where it has none.
        groups: group sizes with GPU kernels; empty where the method has no choice.
        gpus: for each flavour that runs it the GPUs of `data/gpus.yaml`; none for openvino, which needs none.
        note: what else a user should know.
    """

    method: str
    quant_algo: str | None
    groups: tuple[int, ...]
    gpus: dict[str, tuple[str, ...]]
    note: str | None


def support(gpu: str | None = None, flavour: str | None = None) -> list[Support]:
    """The table of who runs what, of one GPU or flavour alone if named.

    Raises:
        UsageError: there is no such GPU or flavour in the tables.
    """
    gpus = load_table("gpus")
    for value, known, what in ((gpu, gpus, "GPU"), (flavour, FLAVOURS, "flavour")):
        if value is not None and value not in known:
            raise UsageError(f"nothing is known of a {what} {value!r}", fix=f"use one of {', '.join(known)}")
    found = []
    for method, row in load_table("quant_algos").items():
        runs: dict[str, tuple[str, ...]] = {}
        for name in FLAVOURS:
            if name not in row or flavour not in (None, name):
                continue
            able = () if row[name] is True else tuple(g for g in gpus if gpus[g]["sm"] in row[name])
            if gpu is None:
                runs[name] = able
            elif gpu in able:
                runs[name] = (gpu,)
        if runs:
            algo = load_table("formats").get(method, {}).get("quant_algo")
            found.append(Support(method, algo, tuple(row.get("groups", ())), runs, row.get("note")))
    return found
