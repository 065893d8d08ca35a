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
    set_by: str | None = None
    unused: str | None = None

    def known_to(self, version: str) -> bool:
        """Whether trtllm-build of `version` has it, as far as is known."""
        return self.first is None or Version(version) >= Version(self.first)


@cache
def build_flags() -> Mapping[str, Flag]:
    """All of them, by name."""
    return {
        name: Flag(name, **{**facts, "choices": tuple(facts.get("choices", ()))})
        for name, facts in load_table("build_flags").items()
    }


def flag_problems(asked: Mapping[str, Any], version: str) -> list[PlanError]:
    """Why trtllm-build of `version` cannot take the flags of `engine.build`; empty when it can.

    Args:
        asked: flags by name that differ from trtllm-build's own choice, as `asked_flags` gives them.
        version: of TensorRT-LLM.
    """
    problems = []
    for name in asked:
        flag = build_flags()[name]
        if flag.known_to(version):
            continue
        able = [one for one in releases() if "tensorrt" in one.flavours and flag.known_to(one.version)]
        near = nearest(version, able)
        problems.append(
            PlanError(
                f"trtllm-build of TensorRT-LLM {version} has no flag --{name}",
                where=f"engine.build.{name}",
                why=f"the oldest release that is known to have it is {flag.first}",
                fix=f"remove it, or set engine.version to {near.version if near else flag.first}",
            )
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
