"""A quantized checkpoint beside its source on the same text, one decoder layer in memory at a time.

Both compute in float32; the quantized one with the weights that its codes stand for, and with the rounding of
activations and KV cache that its scheme asks of an engine.

Shapes: W windows of S tokens; P tokens of the probe; H hidden_size.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from quantize.device import choose_device
from toolchain.errors import GateError, ModelError
from toolchain.gate.baseline import Baseline
from toolchain.gate.compare import Sums, compare
from toolchain.gate.result import Evaluation, LayerError
from toolchain.gate.streamed import StreamedModel, run_layer
from toolchain.model.families import layer_prefix
from toolchain.model.spec import ModelSpec
from toolchain.progress import Progress, Silent

# Fields of a spec that may differ between a model and its quantized form.
_FREE = frozenset({"dtype", "quantization", "bos_token_id", "eos_token_ids", "pad_token_id"})


@torch.inference_mode()
def evaluate(
    source_dir: Path,
    quantized_dir: Path,
    baseline: Baseline,
    *,
    device: str = "auto",
    simulate: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure the checkpoint in `quantized_dir`, plain or quantized, against the model in `source_dir`.

    Beside one layer it holds the hidden states of all windows and the head: memory does not grow with the
    number of layers. Of the source, only the head is read.

    Args:
        source_dir: the source model.
        quantized_dir: the checkpoint.
        baseline: what the source makes of the text.
        device: "auto", "cpu", "cuda" or "cuda:N".
        simulate: round activations and KV cache as well, where the scheme quantizes them.
        progress: is told of each layer.

    Raises:
        ModelError: a checkpoint is damaged, or the two are not of one model.
        GateError: the hidden states of the quantized model are NaN or infinite.
        ToolchainError: the device is not there.
    """
    progress = progress or Silent()
    chosen = choose_device(device)
    source = StreamedModel(source_dir, device=chosen)
    model = StreamedModel(quantized_dir, device=chosen, simulate=simulate)
    _check_same(source.spec, model.spec, quantized_dir)
    windows, probe_NPH = baseline.windows, baseline.probe
    progress.start("evaluate", model.spec.num_hidden_layers + 1, "steps")

    hidden = model.enter(windows.tokens)
    layers: list[LayerError] = []
    for index in range(model.spec.num_hidden_layers):
        forward = model.layer(index)
        alone_PH = forward(probe_NPH[index].unsqueeze(0).to(chosen))[0].cpu()
        if not run_layer(forward, hidden):
            raise _not_finite(index)
        del forward
        after_PH = hidden.values[0, : probe_NPH.shape[1]]
        reference_PH = probe_NPH[index + 1]
        layers.append(LayerError(index, _error(after_PH, reference_PH), _error(alone_PH, reference_PH)))
        progress.advance()

    head = source.head()
    heads = head, model.head(head)
    rows = [
        compare(windows, number, (baseline.hidden[number], hidden.values[number]), heads)
        for number in range(len(windows.tokens))
    ]
    progress.advance()
    sums = Sums.of(rows)
    source_perplexity, quantized_perplexity = sums.perplexities
    return Evaluation(
        window=windows.tokens.shape[1],
        stride=windows.stride,
        windows=len(windows.tokens),
        tokens=sums.tokens,
        source_perplexity=source_perplexity,
        quantized_perplexity=quantized_perplexity,
        increase=sums.increase,
        increase_error=sums.increase_error,
        kl=sums.kl,
        kl_error=sums.kl_error,
        top1=sums.top1,
        top1_error=sums.top1_error,
        simulated=tuple(sorted(model.simulated)),
        floor=baseline.floor,
        layers=tuple(layers),
    )


def _error(x_PH: Tensor, reference_PH: Tensor) -> float:
    """Root mean square over tokens of the relative error; a token of huge norm counts like any other."""
    size_P = reference_PH.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((x_PH - reference_PH).square().sum(-1) / size_P).mean().sqrt())


def _check_same(spec: ModelSpec, other: ModelSpec, quantized_dir: Path) -> None:
    names = [field.name for field in fields(spec) if field.name not in _FREE]
    differing = [name for name in names if getattr(spec, name) != getattr(other, name)]
    if differing:
        raise ModelError(
            f"the checkpoint was not made from the source model: they differ in {', '.join(differing)}",
            where=str(quantized_dir / "config.json"),
            fix="name the model that the checkpoint was made from as the source",
        )


def _not_finite(layer: int) -> GateError:
    where = layer_prefix(layer).removesuffix(".")
    return GateError(
        "the quantized model's hidden states are NaN or infinite",
        where=where,
        why="the source model's are finite there",
        fix=f'leave the layer out: add "{where}.*" to quantization.exclude; or quantize again',
    )
