"""What a benchmark found, as JSON: conditions, and the figures of every target and load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.bench.conditions import conditions
from deploy.bench.figures import latencies
from deploy.bench.plan import SCHEMA, Measured, Plan
from deploy.bench.slo import Objective


@dataclass
class Benched:
    """One target and what its levels showed; `address`, `model` and `server` once it was reached."""

    name: str
    address: str = ""
    model: str = ""
    server: str = "unknown"
    levels: list[Measured] = field(default_factory=list)


def to_json(
    plan: Plan,
    benched: Sequence[Benched],
    objectives: Sequence[Objective],
    *,
    started: str,
    prompts: str,
    stopped: str | None,
) -> dict[str, Any]:
    """The whole result.

    Args:
        plan: what was to be measured.
        benched: the targets, those that were not reached included.
        objectives: held against every level.
        started: when, in UTC.
        prompts: what they were made of.
        stopped: why it ended early; None when it is complete.
    """
    is_trace = any(level.trace is not None for level in plan.levels)
    targets: list[dict[str, Any]] = [
        {
            "name": one.name,
            "address": one.address,
            "model": one.model,
            "server": one.server,
            "levels": [
                level.to_json(plan.limits) | {"latencies": latencies(level.records)} for level in one.levels
            ],
        }
        for one in benched
    ]
    return {
        "schema": SCHEMA,
        "kind": "llmbuild-bench",
        "started": started,
        "stopped": stopped,
        "is_partial": stopped is not None,
        "conditions": {
            "prompts": prompts,
            "input_tokens": None if is_trace else str(plan.inputs),
            "output_tokens": None if is_trace else str(plan.outputs),
            "requests_a_load": plan.requests,
            "duration_s": plan.duration_s,
            "warmup_requests": plan.warmup,
            "seed": plan.seed,
            "timeout_s": plan.timeout_s,
            "good_request": dict(plan.limits),
        },
        "machine": conditions(),
        "targets": targets,
        "objectives": [
            _judged(objective, target["name"], level)
            for objective in objectives
            for target in targets
            for level in target["levels"]
        ],
    }


def without_records(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result without what grows with the number of requests: what is printed."""
    targets = [
        target
        | {
            "levels": [
                {name: value for name, value in level.items() if name not in ("records", "latencies")}
                for level in target["levels"]
            ]
        }
        for target in result["targets"]
    ]
    return {**result, "targets": targets}


def _judged(objective: Objective, target: str, level: Mapping[str, Any]) -> dict[str, Any]:
    figure = objective.figure(level["figures"])
    return {
        "objective": str(objective),
        "target": target,
        "load": level["load"],
        "figure": figure,
        "measured": objective.show(figure),
        "is_met": objective.is_met(figure),
    }
