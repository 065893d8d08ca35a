"""The source's run, layer by layer: what the ranks are held against, in files that they read.

Shapes: S tokens; H hidden_size; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantize.layer import linear, rms_norm
from toolchain.engine.tensorrt.verify.halves import attention_update, mlp_update
from toolchain.engine.tensorrt.verify.scales import CACHE
from toolchain.gate.streamed import StreamedModel
from toolchain.model.families import EMBEDDING, layer_prefix
from toolchain.progress import Progress

_SCALE = "scale."


@torch.inference_mode()
def write_reference(model: StreamedModel, tokens_S: Tensor, out_dir: Path, progress: Progress) -> None:
    """Run the source over one sequence, and keep what every layer reads and adds.

    One layer is in memory at a time.

    Raises:
        ModelError: the source is damaged.
    """
    layers = model.spec.num_hidden_layers
    progress.start("run the source", layers, "layers")
    embedding_VH = model.checkpoint.checkpoint.view(EMBEDDING)
    hidden_1SH = F.embedding(tokens_S, embedding_VH).to(model.dtype)[None]
    embedded_SH = hidden_1SH[0]
    for index in range(layers):
        layer = model.decoder_layer(index)
        attention_1SH = attention_update(layer, hidden_1SH, model.rotary(len(tokens_S)))
        middle_1SH = hidden_1SH + attention_1SH
        mlp_1SH = mlp_update(layer, middle_1SH)
        states = {"input": hidden_1SH[0], "attention": attention_1SH[0], "mlp": mlp_1SH[0]}
        scales = {f"{_SCALE}{name}": scale for name, scale in model.input_scales.items()}
        cache = model.checkpoint.kv_scales(layer_prefix(index))
        scales |= {f"{_SCALE}{name}": scale for name, scale in zip(CACHE, cache or (), strict=False)}
        _save(states | scales, out_dir / f"layer{index}.safetensors")
        hidden_1SH = middle_1SH + mlp_1SH
        progress.advance()
    head = model.head()
    logits_SV = linear(rms_norm(hidden_1SH[0], head.norm, head.eps), head.embedding)
    ends = {"tokens": tokens_S, "embedded": embedded_SH, "output": hidden_1SH[0], "logits": logits_SV}
    _save(ends, out_dir / "ends.safetensors")


@dataclass(frozen=True)
class LayerStates:
    """A layer of the source's run.

    Args:
        input: what enters it, float32 [S, H].
        attention, mlp: what either half adds, float32 [S, H].
        scales: of activations and of the cache, as in `scale_error`.
    """

    input: Tensor
    attention: Tensor
    mlp: Tensor
    scales: Mapping[str, Tensor]


def read_layer(directory: Path, index: int) -> LayerStates:
    """Layer `index` of what `write_reference` wrote."""
    stored = load_file(directory / f"layer{index}.safetensors")
    scales = {name.removeprefix(_SCALE): stored[name] for name in stored if name.startswith(_SCALE)}
    return LayerStates(stored["input"], stored["attention"], stored["mlp"], scales)


def read_ends(directory: Path) -> dict[str, Tensor]:
    """tokens int64 [S]; float32: embedded [S, H], output [S, H] of the last layer, logits [S, V]."""
    ends: dict[str, Tensor] = load_file(directory / "ends.safetensors")
    return ends


def _save(states: dict[str, Tensor], file: Path) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in states.items()}, file)
