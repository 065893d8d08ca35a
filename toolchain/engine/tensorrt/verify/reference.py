"""The source's run, layer by layer: what the ranks are held against, in files that they read.

Shapes: S tokens; H hidden_size; V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantize.layer import linear, rms_norm
from toolchain.engine.tensorrt.verify.halves import attention_update, mlp_update
from toolchain.gate.streamed import StreamedModel
from toolchain.model.families import EMBEDDING
from toolchain.progress import Progress


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
        _save(states, out_dir / f"layer{index}.safetensors")
        hidden_1SH = middle_1SH + mlp_1SH
        progress.advance()
    head = model.head()
    logits_SV = linear(rms_norm(hidden_1SH[0], head.norm, head.eps), head.embedding)
    ends = {"tokens": tokens_S, "embedded": embedded_SH, "output": hidden_1SH[0], "logits": logits_SV}
    _save(ends, out_dir / "ends.safetensors")


def read_layer(directory: Path, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """What enters layer `index`, and what its attention and its MLP add, float32 [S, H] each."""
    states = load_file(directory / f"layer{index}.safetensors")
    return states["input"], states["attention"], states["mlp"]


def read_ends(directory: Path) -> dict[str, Tensor]:
    """tokens int64 [S]; float32: embedded [S, H], output [S, H] of the last layer, logits [S, V]."""
    ends: dict[str, Tensor] = load_file(directory / "ends.safetensors")
    return ends


def _save(states: dict[str, Tensor], file: Path) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in states.items()}, file)
