"""A quantized checkpoint beside its source on the same text, one decoder layer of each in memory at a time.

Both models compute in float32, the quantized one with the weights that its codes stand for.

Shapes: W windows of S tokens; H hidden_size; V vocabulary; T tokens of one chunk.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.layer import DecoderLayer, rms_norm, rotary_tables
from quantize.linear import QuantizedLinear
from toolchain.errors import GateError, ModelError
from toolchain.gate.result import Evaluation, LayerError
from toolchain.gate.text import Windows
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    layer_prefix,
    layer_tensors,
    linear_shapes,
)
from toolchain.model.spec import ModelSpec, load_spec
from toolchain.progress import Progress, Silent

# Tokens that go through a layer at a time.
_BATCH_TOKENS = 2048
# Logits of one model that are held at a time: 32 MiB.
_LOGITS = 1 << 23
# Fields of a spec that may differ between a model and its quantized form.
_FREE = frozenset({"dtype", "quantization", "bos_token_id", "eos_token_ids", "pad_token_id"})
# exp of more than this is beyond a double; a perplexity there means that the model is broken anyway.
_LARGEST_LOG = 700.0


@torch.inference_mode()
def evaluate(
    source_dir: Path, quantized_dir: Path, windows: Windows, *, progress: Progress | None = None
) -> Evaluation:
    """Measure the checkpoint in `quantized_dir`, plain or quantized, against the model in `source_dir`.

    Beside one layer of each model it holds the hidden states of all windows, twice, and the head: memory
    does not grow with the number of layers. Logits exist for a few tokens at a time.

    Raises:
        ModelError: a checkpoint is damaged, or the two are not of one model; the source's hidden states
            are NaN or infinite.
        GateError: those of the quantized model are.
    """
    progress = progress or Silent()
    source, quantized = Checkpoint.open(source_dir), QuantizedCheckpoint.open(quantized_dir)
    spec = load_spec(source_dir)
    if spec.quantization is not None:
        raise ModelError(
            "the source model is quantized itself",
            where=str(source_dir / "config.json"),
            fix="compare with the model that the checkpoint was made from",
        )
    _check_same(spec, load_spec(quantized_dir), quantized_dir)
    progress.start("evaluate", spec.num_hidden_layers + 1, "steps")

    reference_WSH = F.embedding(windows.tokens, source.view(EMBEDDING)).float()
    hidden_WSH = F.embedding(windows.tokens, quantized.checkpoint.view(EMBEDDING)).float()
    rotary = rotary_tables(spec, windows.tokens.shape[1], torch.float32)
    layers: list[LayerError] = []
    for index in range(spec.num_hidden_layers):
        pair = (
            DecoderLayer(spec, index, _plain_layer(source, spec, index)),
            DecoderLayer(spec, index, _quantized_layer(quantized, spec, index)),
        )
        layers.append(_forward(index, pair, reference_WSH, hidden_WSH, rotary))
        _check_finite(reference_WSH, hidden_WSH, index)
        del pair
        progress.advance()

    heads = _heads(source, quantized.checkpoint)
    norms = source.read(FINAL_NORM).float(), quantized.read(FINAL_NORM).float()
    table_WM = torch.stack(
        [
            _compare_window(spec, windows, number, (reference_WSH[number], hidden_WSH[number]), norms, heads)
            for number in range(len(windows.tokens))
        ]
    )
    progress.advance()
    return _summary(windows, table_WM, tuple(layers))


def _check_same(spec: ModelSpec, other: ModelSpec, quantized_dir: Path) -> None:
    names = [field.name for field in fields(spec) if field.name not in _FREE]
    differing = [name for name in names if getattr(spec, name) != getattr(other, name)]
    if differing:
        raise ModelError(
            f"the checkpoint was not made from the source model: they differ in {', '.join(differing)}",
            where=str(quantized_dir / "config.json"),
            fix="name the model that the checkpoint was made from as the source",
        )


def _plain_layer(checkpoint: Checkpoint, spec: ModelSpec, index: int) -> dict[str, Tensor]:
    """The tensors of a decoder layer in float32, by name without the layer's prefix."""
    prefix = layer_prefix(index)
    return {name: checkpoint.read(prefix + name).float() for name in layer_tensors(spec, index)}


def _quantized_layer(checkpoint: QuantizedCheckpoint, spec: ModelSpec, index: int) -> dict[str, Tensor]:
    """The same of a quantized checkpoint: the weights that its codes stand for."""
    prefix = layer_prefix(index)
    linears = linear_shapes(spec, index)
    tensors = {}
    for name in layer_tensors(spec, index):
        module = name.removesuffix(".weight")
        if module in linears:
            linear = checkpoint.linear(prefix + module)
            plain = linear.dequantize() if isinstance(linear, QuantizedLinear) else linear.float()
        else:
            plain = checkpoint.read(prefix + name).float()
        tensors[name] = plain
    return tensors


def _forward(
    index: int,
    pair: tuple[DecoderLayer, DecoderLayer],
    reference_WSH: Tensor,
    hidden_WSH: Tensor,
    rotary: tuple[Tensor, Tensor],
) -> LayerError:
    """What enters the source's layer and the quantized one becomes what leaves them."""
    source, quantized = pair
    size = difference = own = 0.0
    batch = max(1, _BATCH_TOKENS // hidden_WSH.shape[1])
    for start in range(0, len(hidden_WSH), batch):
        reference_BSH, hidden_BSH = (states[start : start + batch] for states in (reference_WSH, hidden_WSH))
        left_BSH = source.forward(reference_BSH, rotary)
        own += _square(quantized.forward(reference_BSH, rotary).sub_(left_BSH))
        reference_BSH.copy_(left_BSH)
        hidden_BSH.copy_(quantized.forward(hidden_BSH, rotary))
        difference += _square(left_BSH.sub_(hidden_BSH))
        size += _square(reference_BSH)
    size = size or 1.0  # nothing but zeros: no difference is one
    return LayerError(index, math.sqrt(difference / size), math.sqrt(own / size))


def _square(x: Tensor) -> float:
    return float(x.square().sum())


def _check_finite(reference_WSH: Tensor, hidden_WSH: Tensor, layer: int) -> None:
    where = layer_prefix(layer).removesuffix(".")
    if not torch.isfinite(reference_WSH.sum()):
        raise ModelError(
            "the source model's hidden states are NaN or infinite",
            where=where,
            fix="check the source model's weights; they may be damaged",
        )
    if not torch.isfinite(hidden_WSH.sum()):
        raise GateError(
            "the quantized model's hidden states are NaN or infinite",
            where=where,
            why="the source model's are finite there",
            fix=f'leave the layer out: add "{where}.*" to quantization.exclude; or quantize again',
        )


def _heads(source: Checkpoint, quantized: Checkpoint) -> tuple[Tensor, Tensor]:
    """The output embeddings of both, float32 [V, H]: one tensor where they are equal, as they mostly are."""
    one, other = (
        checkpoint.read(LM_HEAD if LM_HEAD in checkpoint else EMBEDDING) for checkpoint in (source, quantized)
    )
    if one.dtype == other.dtype and torch.equal(one, other):
        del other
        head = one.float()
        return head, head
    return one.float(), other.float()


def _compare_window(
    spec: ModelSpec,
    windows: Windows,
    number: int,
    hidden: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor],
    heads: tuple[Tensor, Tensor],
) -> Tensor:
    """Sums over a window's predictions, float64 [5]: both cross entropies, KL, agreements, predictions."""
    first = windows.first_predicted(number)
    targets_S = windows.tokens[number, first:]
    sums = torch.zeros(5, dtype=torch.float64)
    chunk = max(1, _LOGITS // spec.vocab_size)
    for start in range(0, len(targets_S), chunk):
        targets_T = targets_S[start : start + chunk]
        rows = slice(first - 1 + start, first - 1 + start + len(targets_T))
        source_TV, quantized_TV = (
            F.linear(rms_norm(states_SH[rows], norm_H, spec.rms_norm_eps), head_VH).log_softmax(-1)
            for states_SH, norm_H, head_VH in zip(hidden, norms, heads, strict=True)
        )
        sums += _compare(source_TV, quantized_TV, targets_T)
    return sums


def _compare(source_TV: Tensor, quantized_TV: Tensor, targets_T: Tensor) -> Tensor:
    """The sums of `_compare_window` for a chunk of log probabilities."""
    agreements = (source_TV.argmax(-1) == quantized_TV.argmax(-1)).sum()
    entropies = [
        F.nll_loss(logs_TV, targets_T, reduction="none").sum(dtype=torch.float64)
        for logs_TV in (source_TV, quantized_TV)
    ]
    divergence = (source_TV.exp() * (source_TV - quantized_TV)).sum(dtype=torch.float64)
    count = torch.tensor(len(targets_T), dtype=torch.float64)
    return torch.stack([*entropies, divergence, agreements.double(), count])


def _summary(windows: Windows, table_WM: Tensor, layers: tuple[LayerError, ...]) -> Evaluation:
    counts_W = table_WM[:, 4]
    source, quantized, kl, top1 = ((table_WM[:, column].sum() / counts_W.sum()).item() for column in range(4))
    ratio = _exp(quantized - source)
    slope = _standard_error(table_WM[:, 1] - table_WM[:, 0], counts_W)
    return Evaluation(
        window=windows.tokens.shape[1],
        stride=windows.stride,
        windows=len(windows.tokens),
        tokens=int(counts_W.sum()),
        source_perplexity=_exp(source),
        quantized_perplexity=_exp(quantized),
        increase=ratio - 1,
        increase_error=None if slope is None else ratio * slope,
        kl=kl,
        kl_error=_standard_error(table_WM[:, 2], counts_W),
        top1=top1,
        layers=layers,
    )


def _exp(value: float) -> float:
    return math.exp(min(value, _LARGEST_LOG))


def _standard_error(sums_W: Tensor, counts_W: Tensor) -> float | None:
    """Of the mean sum(sums) / sum(counts), as a ratio estimator over windows; None for one window."""
    count = len(sums_W)
    if count < 2:
        return None
    residuals_W = sums_W - counts_W * (sums_W.sum() / counts_W.sum())
    variance = residuals_W.square().sum().item() * count / (count - 1)
    return math.sqrt(variance) / counts_W.sum().item()
