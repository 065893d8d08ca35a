"""Rotary position embedding: its parameters from `config.json`, and the frequencies they stand for.

The formulas are those of transformers' `ROPE_INIT_FUNCTIONS` (5.23), evaluated in float64.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.model.config_json import Fields

Frequencies = npt.NDArray[np.float64]

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Every kind understood here, in Hugging Face's words."""

_ALIASES = {"su": "longrope"}  # the name under which Phi-3 first published LongRoPE

_KNOWN_KEYS = {
    *(
        "type",
        "rope_type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
    ),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
    "finetuned",  # a remark of the YaRN authors' own configs; no effect on the arithmetic
}


@dataclass(frozen=True)
class RopeSpec:
    """The rotary embedding of a model, complete: nothing else of the config is needed to compute it.

    Args:
        kind: one of `KINDS`.
        theta: the base of the geometric series of frequencies.
        rotary_dim: how many leading channels of a head are rotated; even.
        max_position_embeddings: the context length that the config declares.
        original_max_position_embeddings: the context length before it was extended (yarn, longrope, llama3).
        factor: by how much the context was extended.
        attention_factor: multiplies cos and sin (yarn, longrope; 1 elsewhere).
        beta_fast, beta_slow, truncate: the ramp between kept and interpolated frequencies (yarn).
        low_freq_factor, high_freq_factor: the band between interpolated and kept frequencies (llama3).
        short_factor, long_factor: divisors for each frequency, [rotary_dim / 2] (longrope).
    """

    kind: str
    theta: float
    rotary_dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    factor: float = 1.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def inv_freq(self, seq_len: int | None = None) -> Frequencies:
        """Radians per position of each channel pair, float64 [rotary_dim / 2].

        `seq_len` is the longest position in use, plus one. It matters for two kinds: dynamic, above
        `max_position_embeddings`, and longrope, above `original_max_position_embeddings`; None means
        within both.
        """
        if self.kind == "linear":
            return self._series(self.theta) / self.factor
        if self.kind == "dynamic":
            return self._series(self._dynamic_theta(seq_len))
        if self.kind == "yarn":
            return self._yarn()
        if self.kind == "longrope":
            long = seq_len is not None and seq_len > self.original_max_position_embeddings
            divisors = np.array(self.long_factor if long else self.short_factor, dtype=np.float64)
            return self._series(self.theta) / divisors
        if self.kind == "llama3":
            return self._llama3()
        return self._series(self.theta)

    def _series(self, theta: float) -> Frequencies:
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim
        series: Frequencies = theta**-exponents
        return series

    def _dynamic_theta(self, seq_len: int | None) -> float:
        """NTK scaling: the base grows with the sequence, so that the highest frequency stays as it is."""
        length = max(seq_len or 0, self.max_position_embeddings)
        stretch = self.factor * length / self.max_position_embeddings - (self.factor - 1)
        return float(self.theta * stretch ** (self.rotary_dim / (self.rotary_dim - 2)))

    def _yarn(self) -> Frequencies:
        """YaRN (https://arxiv.org/abs/2309.00071): keep the fast channels, interpolate the slow ones."""

        def channel_of(rotations: float) -> float:
            """The channel pair that turns `rotations` times within the original context."""
            turns = self.original_max_position_embeddings / (rotations * 2 * math.pi)
            return self.rotary_dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = channel_of(self.beta_fast), channel_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        if low == high:
            high += 0.001  # a step instead of a ramp
        channels = np.arange(self.rotary_dim // 2, dtype=np.float64)
        interpolated = np.clip((channels - low) / (high - low), 0.0, 1.0)
        frequencies = self._series(self.theta)
        blended: Frequencies = frequencies * (1.0 - interpolated) + frequencies / self.factor * interpolated
        return blended

    def _llama3(self) -> Frequencies:
        """Llama 3.1: keep short wavelengths, divide long ones by `factor`, blend those between."""
        frequencies = self._series(self.theta)
        rotations = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        band = self.high_freq_factor - self.low_freq_factor
        kept = np.clip((rotations - self.low_freq_factor) / band, 0.0, 1.0)
        blended: Frequencies = frequencies * kept + frequencies / self.factor * (1.0 - kept)
        return blended


def parse_rope(
    config: Mapping[str, Any],
    head_dim: int,
    max_positions: int,
    problems: list[str],
    *,
    default_theta: float = 10000.0,
) -> RopeSpec:
    """The `RopeSpec` of a `config.json`; what is wrong with it is appended to `problems`.

    Reads transformers 5 (`rope_parameters`, all in one object) and transformers 4 (`rope_theta` beside
    `rope_scaling`, the kind under `type` or `rope_type`). `default_theta` is the family's base.
    """
    top = Fields(config, problems)
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    fields = Fields(top.mapping(name), problems, prefix=f"{name}.")

    def inside_or_beside(name: str) -> Fields:
        """transformers settles it the same way: a value inside the object wins over one beside it."""
        return fields if fields.values.get(name) is not None else top

    kind = _parse_kind(fields)
    theta = inside_or_beside("rope_theta").number("rope_theta", default_theta, above=1.0)
    partial = inside_or_beside("partial_rotary_factor").number("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * partial)
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        problems.append(
            f"the rotary dimension (head_dim {head_dim} times partial_rotary_factor) must be an even number "
            f"from 2 to {head_dim}, not {rotary_dim}"
        )
    # Phi-3 puts the original length beside the object; there transformers lets it win.
    original = top.optional_integer("original_max_position_embeddings")
    original = original or fields.integer("original_max_position_embeddings", max_positions)
    common = (kind, theta, rotary_dim, max_positions, original)

    if kind == "linear":
        return RopeSpec(*common, factor=fields.number("factor"))
    if kind == "dynamic":
        if rotary_dim < 4:
            problems.append(f"dynamic RoPE needs a rotary dimension of at least 4, not {rotary_dim}")
        return RopeSpec(*common, factor=fields.number("factor"))
    if kind == "yarn":
        return _parse_yarn(fields, common)
    if kind == "longrope":
        factor = fields.number("factor", max_positions / original)
        inferred = math.sqrt(1 + math.log(factor) / math.log(max(original, 2))) if factor > 1 else 1.0
        return RopeSpec(
            *common,
            factor=factor,
            attention_factor=fields.number("attention_factor", inferred),
            short_factor=fields.numbers("short_factor", rotary_dim // 2),
            long_factor=fields.numbers("long_factor", rotary_dim // 2),
        )
    if kind == "llama3":
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        if high <= low and {"low_freq_factor", "high_freq_factor"} <= fields.values.keys():
            fields.problem(
                "high_freq_factor", f"must be greater than low_freq_factor ({low:g}), not {high:g}"
            )
        return RopeSpec(*common, factor=fields.number("factor"), low_freq_factor=low, high_freq_factor=high)
    return RopeSpec(*common)


def _parse_kind(fields: Fields) -> str:
    if "mrope_section" in fields.values:
        fields.problem("mrope_section", "is multimodal RoPE, which text-only models do not use")
        return "default"
    unknown = sorted(fields.values.keys() - _KNOWN_KEYS)
    for key in unknown:
        fields.problem(key, "is not a known RoPE parameter")
    kind = fields.text("rope_type", fields.values.get("type") or "default")
    kind = _ALIASES.get(kind, kind)
    if kind and kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        fields.problem("rope_type", f"is {kind!r}; known kinds are {', '.join(KINDS)}{hint}")
        return "default"
    return kind


def _parse_yarn(fields: Fields, common: tuple[str, float, int, int, int]) -> RopeSpec:
    *_, max_positions, original = common
    factor = fields.number("factor", max_positions / original)
    mscale, mscale_all_dim = fields.optional_number("mscale"), fields.optional_number("mscale_all_dim")

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    inferred = magnitude(mscale) / magnitude(mscale_all_dim) if mscale and mscale_all_dim else magnitude(1.0)
    beta_fast, beta_slow = fields.number("beta_fast", 32.0), fields.number("beta_slow", 1.0)
    if beta_fast < beta_slow:
        fields.problem("beta_fast", f"must not be less than beta_slow ({beta_slow:g}), but is {beta_fast:g}")
    return RopeSpec(
        *common,
        factor=factor,
        attention_factor=fields.number("attention_factor", inferred),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=fields.flag("truncate", True),
    )
