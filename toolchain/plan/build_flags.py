"""The flags of `trtllm-build` by version (`data/build_flags.yaml`), and what a recipe asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from packaging.version import Version

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.plan.releases import nearest, releases


@dataclass(frozen=True)
class Flag:
    """One flag of trtllm-build; the fields are described in the table."""

    name: str
    kind: str
    choices: tuple[str, ...] = ()
    default: str | int | None = None
    first: str | None = None
    not_on: tuple[int, ...] = ()
    models: tuple[str, ...] = ()
    set_by: str | None = None
    unused: str | None = None

    def known_to(self, version: str) -> bool:
        """Whether trtllm-build of `version` has it, as far as is known."""
        return self.first is None or Version(version) >= Version(self.first)


@cache
def build_flags() -> Mapping[str, Flag]:
    """All of them, by name."""
    found = {}
    for name, facts in load_table("build_flags").items():
        lists = {key: tuple(facts.get(key, ())) for key in ("choices", "not_on", "models")}
        found[name] = Flag(name, **(facts | lists))
    return found


def flag_problems(
    asked: Mapping[str, Any], version: str, *, gpu: str | None = None, architecture: str | None = None
) -> list[PlanError]:
    """Why trtllm-build of `version` will not take the flags of `engine.build`; empty when it will.

    Args:
        asked: flags by name that say something, as `asked_flags` gives them.
        version: of TensorRT-LLM.
        gpu: a row of `data/gpus.yaml`; None where it is not known.
        architecture: of the model, as its config.json has it; None where it is not known.
    """
    problems = []

    def refuse(name: str, what: str, why: str, fix: str) -> None:
        problems.append(PlanError(what, where=f"engine.build.{name}", why=why, fix=fix))

    sm = load_table("gpus").get(gpu or "", {}).get("sm")
    for name, value in asked.items():
        flag = build_flags()[name]
        if not flag.known_to(version):
            able = [one for one in releases() if "tensorrt" in one.flavours and flag.known_to(one.version)]
            near = nearest(version, able)
            refuse(
                name,
                f"trtllm-build of TensorRT-LLM {version} has no flag --{name}",
                f"the oldest release that is known to have it is {flag.first}",
                f"remove it, or set engine.version to {near.version if near else flag.first}",
            )
        if value in (False, "disable"):
            continue
        if sm in flag.not_on:
            refuse(
                name,
                f"trtllm-build refuses --{name} on {gpu}",
                f"it has no kernels for compute capability {sm / 10:.1f}",
                "remove it, or choose another engine.gpu",
            )
        if flag.models and architecture not in (None, *flag.models):
            refuse(
                name,
                f"trtllm-build refuses --{name} for {architecture}",
                f"it takes it for {', '.join(flag.models)} alone",
                "remove it",
            )
    return problems


def asked_flags(build: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the section `engine.build`, a mapping, that say something: neither null, false nor empty.

    A switch that is false does say something: disable. What is no flag (executor, image) is left out.
    """
    flags = build_flags()
    return {
        name: value
        for name, value in build.items()
        if name in flags
        and value is not None
        and value != ()
        and (value is not False or flags[name].kind == "switch")
    }
