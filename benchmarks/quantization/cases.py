"""What is measured: which tool quantizes which model by which method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

OURS = "llmbuild"
PEERS = {"modelopt": "nvidia-modelopt", "llmcompressor": "llmcompressor", "gptqmodel": "GPTQModel"}
"""The peers' modules here, which also name their environments, and their distributions."""

DEMO, OUTLIERS = "demo", "demo with outlier channels"
WIDE, DEEP = "8B shape, 4 layers", "8B shape, 8 layers"
JUDGED = (DEMO, OUTLIERS)
"""Trained models, on which quality is judged."""

# method: (tool, variant) of those that have it; ours has all.
_PEERS_OF = {
    "awq": [("modelopt", ""), ("modelopt", "awq_full"), ("llmcompressor", "")],
    "gptq": [("modelopt", ""), ("llmcompressor", ""), ("gptqmodel", ""), ("gptqmodel", "desc_act")],
    "awq_gptq": [("llmcompressor", "")],
    "fp8": [("modelopt", ""), ("llmcompressor", "")],
    "int8_sq": [("modelopt", ""), ("llmcompressor", "")],
}
_GROUPED = ("awq", "gptq", "awq_gptq")
# On random weights nothing but time and memory is measured: a variant that works the same way adds nothing.
# And two cores take minutes to search the weights of one such layer.
_WIDE_METHODS = ("fp8",)
_DEEP_METHODS = ("fp8",)
_WIDE_SKIPPED = ("awq_full", "desc_act")


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        model: DEMO, OUTLIERS, WIDE or DEEP.
        method: as a recipe calls it.
        group_size: 0 for methods without groups.
        tool: OURS or a key of PEERS.
        variant: of the tool's implementation; "" for its default.
    """

    model: str
    method: str
    group_size: int
    tool: str
    variant: str = ""

    @property
    def same(self) -> tuple[str, str, int]:
        """What it shares with the cases that it is compared with."""
        return self.model, self.method, self.group_size


def cases() -> Iterator[Case]:
    """Every run, those that are compared with each other next to each other."""
    for method, peers in _PEERS_OF.items():
        group_size = 128 if method in _GROUPED else 0
        for model in JUDGED if method in _GROUPED else (DEMO,):
            yield Case(model, method, group_size, OURS)
            for tool, variant in peers:
                yield Case(model, method, group_size, tool, variant)
    for method in _WIDE_METHODS:
        group_size = 128 if method in _GROUPED else 0
        yield Case(WIDE, method, group_size, OURS)
        if method in _DEEP_METHODS:
            yield Case(DEEP, method, group_size, OURS)
        for tool, variant in _PEERS_OF[method]:
            if variant not in _WIDE_SKIPPED:
                yield Case(WIDE, method, group_size, tool, variant)
