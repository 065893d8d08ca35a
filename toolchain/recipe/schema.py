"""`Recipe`: everything that decides what `llmbuild build` makes, as one immutable value.

The sections are data without behaviour. Reading files is `toolchain.recipe.load`, checks that span
several fields are `toolchain.recipe.rules`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from toolchain.recipe.deploy import Deploy
from toolchain.recipe.engine import Engine, Parallelism
from toolchain.recipe.quantization import Quantization
from toolchain.recipe.section import Dataset, Percent, Section, Slug, Source
from toolchain.recipe.text import Text

SCHEMA_VERSION = 1


class Model(Section):
    """Where the weights come from."""

    source: Source = Field(
        description="A Hugging Face model: a Hub id (owner/name), or a local directory in Hugging Face "
        "layout, written with ./ ../ / or ~/ at the beginning and relative to the recipe "
        "file."
    )
    revision: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        default="main",
        description="Branch, tag or commit of a Hub id. `build` resolves it to a commit and records that;"
        " name a commit to get the same weights for ever.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Precision of whatever stays unquantized, and of GPU computation. auto: as the source"
        " stores it.",
    )

    @property
    def directory(self) -> Path | None:
        """The local directory, or None for a Hub id."""
        return Path(self.source).expanduser() if self.source[0] in "./~" else None


class HeldOutText(Text):
    """The text that a quality gate measures on, and how it is cut into windows."""

    dataset: Dataset = Field(
        description="The held-out text, in the form of quantization.calibration.dataset. It must not be "
        "the calibration text."
    )
    windows: int = Field(
        default=16,
        ge=1,
        le=65_536,
        description="Windows of the text that are measured, from its beginning, at most. Time and memory "
        "grow with it; the standard error of the figures shrinks.",
    )
    window: Annotated[int, Field(ge=2, le=1_048_576)] | None = Field(
        default=None,
        description="Length of each window, in tokens. null: 2048, or the model's context if that is "
        "shorter.",
    )
    stride: Annotated[int, Field(ge=1, le=1_048_576)] | None = Field(
        default=None,
        description="Tokens from the beginning of a window to that of the next. Each token is predicted "
        "once, so a stride below the window gives each more context, and takes longer. null: the window, "
        "so that none overlap.",
    )

    def same_text(self, other: HeldOutText) -> bool:
        """Whether both are measured on the same windows."""
        return all(getattr(self, name) == getattr(other, name) for name in HeldOutText.model_fields)


class PerplexityGate(HeldOutText):
    """Perplexity of the quantized model on held-out text. One bound suffices; given both, both must hold."""

    max_increase: Percent | None = Field(
        default=None, description="Largest increase over the unquantized model, as 3%."
    )
    max: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Largest perplexity, as a number."
    )

    @property
    def largest_increase(self) -> float | None:
        """`max_increase` as a fraction."""
        return None if self.max_increase is None else float(self.max_increase.removesuffix("%")) / 100


class KlGate(HeldOutText):
    """The quantized model's next-token distributions beside the source's. All bounds given must hold."""

    max: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Largest mean KL divergence per token, in nats."
    )
    max_over_floor: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Largest mean divergence as a multiple of the arithmetic floor: what the source loses by "
        "computing in the dtype that it is stored in. For sources stored in 16 bits.",
    )
    min_top1: Percent | None = Field(
        default=None,
        description="Least share of the places at which the likeliest token is the source's, as 97%.",
    )

    @property
    def least_top1(self) -> float | None:
        """`min_top1` as a fraction."""
        return None if self.min_top1 is None else float(self.min_top1.removesuffix("%")) / 100


class SmokeGate(Section):
    """A few prompts, answered greedily: by the engine on the openvino flavour, or else by the checkpoint."""

    prompts: int = Field(
        default=4, ge=1, le=16, description="Number of built-in prompts to run: prose, facts and code."
    )
    texts: tuple[Annotated[str, Field(min_length=1, max_length=10_000)], ...] = Field(
        default=(),
        max_length=64,
        strict=False,  # YAML gives a list; its elements are still checked strictly
        description="Prompts of your own, which then run instead.",
    )
    max_tokens: int = Field(
        default=16,
        ge=1,
        le=256,
        description="Longest answer, in tokens. Without an engine, each takes a pass through the weights.",
    )
    max_gap: Annotated[float, Field(gt=0)] = Field(
        default=0.5,
        description="By how much an answer's tokens may be less likely than the choices of the reference in "
        "the same places, in the mean, in nats a token. An engine's reference is the checkpoint, a "
        "checkpoint's the source.",
    )


class Gates(Section):
    """What a build must pass: quality before an engine is built, or else the build stops."""

    perplexity: PerplexityGate | None = Field(
        default=None, description="How much worse the quantized model predicts held-out text."
    )
    kl: KlGate | None = Field(
        default=None, description="How far the quantized model's predictions are from the source's."
    )
    smoke: SmokeGate | None = Field(default=None, description="Does it answer, and as it should.")


class Recipe(Section):
    """One model, quantized one way, built for one engine, deployed one way."""

    schema_version: Literal[1] = Field(
        alias="schema", description="Version of the recipe format. Mandatory in every file; always 1 so far."
    )
    name: Slug = Field(description="Name of the artifact: `build` leaves it in artifacts/NAME.")
    model: Model = Field(description="Where the weights come from.")
    quantization: Quantization = Field(
        default_factory=Quantization, description="How the weights are made small."
    )
    parallelism: Parallelism = Field(
        default_factory=Parallelism, description="Over how many GPUs one copy of the model is spread."
    )
    engine: Engine = Field(
        default_factory=Engine, description="What runs the model, and within which limits."
    )
    deploy: Deploy = Field(default_factory=Deploy, description="How the server treats requests.")
    gates: Gates = Field(default_factory=Gates, description="What a finished build must pass.")
