"""A plan in words, for a terminal: figures, the formula behind them, the memory of each rank as a bar."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from toolchain.plan.memory import human_bytes

if TYPE_CHECKING:
    from toolchain.model.spec import ModelSpec
    from toolchain.plan.plan import Plan
    from toolchain.plan.ranks import RankMemory

BAR = 56
"""Characters of a bar that is as long as the device's memory."""


class Part(NamedTuple):
    """One part of a rank's memory: its name, its bytes, and what a bar shows it as."""

    name: str
    size: int
    mark: str


def parts(rank: RankMemory) -> list[Part]:
    """What the memory of a rank goes to."""
    found = [
        Part("weights", rank.weights.total, "█"),
        Part("activations", rank.activations, "▓"),
        Part("runtime", rank.runtime, "▓"),
        Part("KV cache", rank.cache, "▒"),
        Part("unused", max(0, rank.unused), "·"),
    ]
    return [part for part in found if part.size]


class Alike(NamedTuple):
    """Consecutive ranks with the same figures: a name for them, one for their layers, and the first."""

    name: str
    layers: str
    rank: RankMemory


def alike(ranks: Sequence[RankMemory]) -> list[Alike]:
    """The ranks, those with the same figures as one."""

    def figures(rank: RankMemory) -> object:
        own = rank.weights
        return own.end - own.begin, own.embedding, own.layers, own.head, rank.activations, rank.cache

    found = []
    for _, group in groupby(ranks, key=figures):
        first, *others = group
        last = others[-1] if others else first
        name = f"rank {first.rank}" + (f"-{last.rank}" if others else "")
        begin, end = first.weights.begin, first.weights.end
        several = last.stage > first.stage
        found.append(
            Alike(name, f"{end - begin} layers each" if several else f"layers {begin}-{end - 1}", first)
        )
    return found


def figure_rows(plan: Plan) -> list[list[str]]:
    """Two columns: what, and how much."""
    spec, recipe, fit = plan.spec, plan.resolved, plan.fit
    ranks, split = len(fit.ranks), recipe.parallelism
    flavour: str = recipe.engine.flavour
    if ranks > 1:
        flavour += f", tensor {split.tp_size} x pipeline {split.pp_size} = {ranks} ranks"
    if split.gpus is not None and split.gpus // ranks > 1:
        flavour += f"; {split.gpus // ranks} copies on {split.gpus} GPUs"
    sizes = f"{human_bytes(plan.weights.source.total)} -> {human_bytes(plan.weights.stored.total)}"
    heads = f"{spec.num_attention_heads} heads, {spec.num_key_value_heads} KV heads of {spec.head_dim}"
    in_memory = f"{human_bytes(fit.fullest.weights.total)} in memory"
    first, *others = kv_formula(plan)
    return [
        ["model", f"{spec.architecture}, {plan.parameters / 1e9:.3g} B parameters"],
        ["", f"{spec.num_hidden_layers} layers, {heads}"],
        ["facts from", plan.facts.origin],
        ["flavour", flavour],
        ["weights", f"{sizes} ({recipe.quantization.method})"],
        *(["", text] for text in _by_method(plan)),
        ["", in_memory + (" on the fullest rank" if ranks > 1 else "")],
        ["KV cache", first],
        *(["", line] for line in others),
        ["fits", _fits(plan)],
    ]


def kv_formula(plan: Plan) -> list[str]:
    """The arithmetic of the KV cache with the numbers of this model, and what it is often mistaken for."""
    spec, fit = plan.spec, plan.fit
    layers, heads = spec.num_hidden_layers, spec.num_key_value_heads
    elements = 2 * layers * heads * spec.head_dim
    whole = plan.token_bytes
    each = whole / elements
    shown = "1 byte" if each == 1 else f"{each:.3g} bytes"
    text = (
        f"2 x {layers} layers x {heads} KV heads x {spec.head_dim} x {shown} ({fit.cache.dtype}) = "
        f"{human_bytes(whole)} a token"
    )
    if len(fit.ranks) > 1:
        text += f", {human_bytes(fit.token_bytes)} on a rank"
    lines = [text]
    if fit.draft is not None:
        lines.append(f"and {human_bytes(fit.token_bytes - whole)} of the draft of {_layers(fit.draft)}")
    if heads < spec.num_attention_heads:
        times = spec.num_attention_heads // heads
        lines.append(
            f"(not the {human_bytes(whole * times)} of {spec.num_attention_heads} heads, a classic mistake: "
            f"each {times} share one KV head)"
        )
    windows = [window for window in fit.cache.windows or spec.sliding_windows if window is not None]
    if windows:
        kept = "no more than" if fit.cache.windows else "all tokens, although attention sees only"
        lines.append(f"{len(windows)} of {layers} layers keep {kept} a window of {max(windows)} tokens")
    recipe = plan.resolved.engine
    wanted = f"{recipe.max_batch_size} sequences of {plan.max_seq_len}"
    if recipe.speculative is not None:
        wanted += f" and {recipe.speculative.max_draft_len} guesses"
    if recipe.kv_cache.max_tokens is not None:
        wanted = f"engine.kv_cache.max_tokens; {wanted} would be {recipe.max_batch_size * plan.max_seq_len}"
    return [*lines, f"{fit.wanted} tokens wanted ({wanted})"]


def _layers(spec: ModelSpec) -> str:
    return f"{spec.num_hidden_layers} layers and {spec.num_key_value_heads} KV heads"


def _fits(plan: Plan) -> str:
    if plan.fit.tokens is None or plan.device.memory is None:
        return f"unknown: {plan.device.name}"
    (longest, most), *shorter = plan.sequence_counts().items()
    counts = "".join(f", {count} of {length}" for length, count in shorter)
    memory = f"{human_bytes(plan.device.memory)} of {plan.device.name}"
    return f"{plan.fit.tokens} tokens in {memory}; at the same time {most} sequences of {longest}{counts}"


def _by_method(plan: Plan) -> list[str]:
    """What each method has, where there are several."""
    if len(plan.weights.by_method) < 2:
        return []
    found = plan.weights.by_method
    lines = [
        f"{name}: {own.linears} linears, {human_bytes(own.stored)}, {own.bits:.2f} bits a weight"
        for name, own in sorted(found.items())
    ]
    bits = 8 * sum(own.stored for own in found.values()) / sum(own.weights for own in found.values())
    return [*lines, f"{bits:.2f} bits a weight over all linears"]


def memory_lines(plan: Plan) -> list[str]:
    """The memory of each rank: a bar, and its parts in figures; empty where the device is not known."""
    if plan.device.memory is None:
        return []
    lines = [f"memory of each rank, of {human_bytes(plan.device.memory)} ({plan.device.name}):"]
    named = alike(plan.fit.ranks)
    width = max(len(group.name) for group in named)
    for name, layers, rank in named:
        found = parts(rank)
        stage = f"{layers}, " if len(named) > 1 else ""
        figures = ", ".join(f"{part.name} {human_bytes(part.size)}" for part in found)
        lines += [f"{name.ljust(width)} {_bar(found, plan.device.memory)}", f"{' ' * width} {stage}{figures}"]
    marks = {"█": "weights", "▓": "activations, runtime", "▒": "KV cache", "·": "unused"}
    return [*lines, f"{' ' * width} " + "  ".join(f"{mark} {name}" for mark, name in marks.items())]


def _bar(found: Sequence[Part], capacity: int) -> str:
    """`found` drawn to scale, the ends rounded so that they add up; a bar that is too long is cut with >."""
    drawn, sofar = "", 0
    for part in found:
        sofar += part.size
        drawn += part.mark * max(0, round(BAR * sofar / capacity) - len(drawn))
    return f"|{drawn[:BAR]}|" if sofar <= capacity else f"|{drawn[:BAR]}>"


def choice_rows(plan: Plan) -> list[list[str]]:
    """Ways to fill in `auto`: place, method, split, weights on a rank, full-length sequences, and why.

    Of each method the best split; of the best method and number of GPUs the best of each other too.
    """
    best = plan.choices[0]
    seen: set[object] = set()
    rows = []
    for place, choice in enumerate(plan.choices, 1):
        kinds = {choice.method} | ({choice.gpus} if choice.method == best.method and choice.works else set())
        if not kinds <= seen:
            seen |= kinds
            rows.append((place, choice))
    return [
        [
            str(place) if choice.works else "-",
            choice.method,
            f"{choice.tensor} x {choice.pipeline}",
            human_bytes(choice.rank_bytes),
            "?" if choice.sequences is None else str(choice.sequences),
            choice.reason,
        ]
        for place, choice in rows
    ]


def stage_rows(plan: Plan) -> list[list[str]]:
    """Each stage of the build: host memory, GPU memory, disk, time with its range, and where that is from."""
    return [
        [
            need.stage,
            human_bytes(need.host),
            human_bytes(need.gpu) if need.gpu else "-",
            human_bytes(need.disk) if need.disk else "-",
            f"{human_time(need.seconds)} ({human_time(need.fastest)} to {human_time(need.slowest)})",
            need.basis,
        ]
        for need in plan.stages
    ]


def human_time(seconds: float) -> str:
    """A duration as people say it, to two digits or so."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
