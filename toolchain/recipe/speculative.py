"""The `engine.speculative` section: tokens guessed cheaply, and checked several at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolchain.recipe.section import Section, Source


class Speculative(Section):
    """Speculative decoding: the same greedy answers, in fewer steps where guesses hold.

    It pays when few requests run at a time and the guesses are good; with a full batch it costs throughput.
    """

    method: Literal["draft_model", "prompt_lookup"] = Field(
        description="Who guesses. draft_model: a small model of the same vocabulary. prompt_lookup: what "
        "followed the latest tokens when they came before, in prompt or answer; good for summaries and code "
        "edits, and costs nothing where nothing repeats."
    )
    source: Source | None = Field(
        default=None,
        description="draft_model only: the draft, a Hub id or a directory as in model.source, plain or "
        "quantized. Its tokenizer is the model's.",
    )
    revision: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        default="main", description="Branch, tag or commit of a Hub id."
    )
    max_draft_len: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Tokens guessed a step. More pays only where most are accepted: measure it.",
    )
    max_matching_ngram_size: int = Field(
        default=3,
        ge=1,
        le=16,
        description="prompt_lookup only: how many of the latest tokens are looked for, at most.",
    )
