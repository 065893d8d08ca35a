"""`Evaluation`: the figures of a quantized checkpoint beside its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerError:
    """How far the quantized model's hidden states are from the source's after a decoder layer.

    Args:
        layer: its index.
        relative_error: norm of the difference over norm of the source's, root mean square over tokens.
        own_error: the same if the quantized layer reads what the source's layer reads: what this layer
            adds by itself.
    """

    layer: int
    relative_error: float
    own_error: float


@dataclass(frozen=True)
class LinearError:
    """How much a linear's output changed on the calibration text, as its quantizer measured it.

    Args:
        module: full name.
        relative_error: norm of the difference over norm of the output.
    """

    module: str
    relative_error: float


@dataclass(frozen=True)
class Floor:
    """What merely computing in the stored dtype costs: the source in it beside the source in float32.

    No quantized model that is served in that dtype can be told from its source below these figures.

    Args:
        dtype: "bfloat16" or "float16".
        increase, kl, top1: as those of `Evaluation`.
    """

    dtype: str
    increase: float
    kl: float
    top1: float


@dataclass(frozen=True)
class Evaluation:
    """What was measured, on `tokens` predictions in `windows` windows of `window` tokens.

    Args:
        window, stride: tokens.
        windows: how many.
        tokens: predictions; perplexity, KL and top-1 are over the same ones.
        source_perplexity, quantized_perplexity: exp of the mean cross entropy in nats.
        increase: quantized over source perplexity, less 1.
        increase_error: standard error of `increase`, from the spread over the windows; both models see the
            same windows, so it is that of their difference. None for a single window.
        kl: mean KL divergence of the quantized model's next token from the source's, in nats.
        kl_error: standard error of `kl`, likewise.
        top1: share of the predictions at which both models' likeliest token is the same.
        top1_error: standard error of `top1`, likewise.
        simulated: what was rounded besides weights, e.g. "activations as FP8".
        floor: what the stored dtype's arithmetic costs by itself; None for a source stored in float32.
        layers: one entry a layer.
    """

    window: int
    stride: int
    windows: int
    tokens: int
    source_perplexity: float
    quantized_perplexity: float
    increase: float
    increase_error: float | None
    kl: float
    kl_error: float | None
    top1: float
    top1_error: float | None
    simulated: tuple[str, ...]
    floor: Floor | None
    layers: tuple[LayerError, ...]

    @property
    def kl_over_floor(self) -> float | None:
        """KL as a multiple of the arithmetic floor's; None where there is no floor."""
        return None if self.floor is None or self.floor.kl <= 0 else self.kl / self.floor.kl

    def worst(self, count: int = 5) -> list[LayerError]:
        """The layers that added most to the error, worst first."""
        return sorted(self.layers, key=lambda layer: -layer.own_error)[:count]

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        """Read `to_json()` back."""
        parsed = {
            "simulated": tuple(values["simulated"]),
            "floor": None if values["floor"] is None else Floor(**values["floor"]),
            "layers": tuple(LayerError(**layer) for layer in values["layers"]),
        }
        return cls(**{**values, **parsed})


@dataclass(frozen=True)
class Answer:
    """A prompt's greedy answer, and what the reference model thinks of it.

    Args:
        prompt, text: what was asked, and the answer.
        tokens: of the answer.
        gap: by how much the reference holds the answer's tokens for less likely than its own choices in the
            same places, nats a token, in the mean; 0 for the reference's own greedy answer.
        same: share of the tokens that are the reference's own choice.
        foreign: tokens that the tokenizer does not know.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    gap: float
    same: float
    foreign: int

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Answer:
        """Read `asdict()` back."""
        return cls(**{**values, "tokens": tuple(values["tokens"])})


@dataclass(frozen=True)
class Measured:
    """All that the gates of a recipe judge.

    Args:
        texts: by the gate that names it, the figures on each held-out text.
        linears: those whose output changed most, worst first; empty where the quantizer measured none.
        answers: of the checkpoint to the smoke gate's prompts; empty where an engine is asked, or nothing.
    """

    texts: Mapping[str, Evaluation]
    linears: tuple[LinearError, ...] = ()
    answers: tuple[Answer, ...] = ()
