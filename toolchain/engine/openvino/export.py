"""From a checkpoint directory to a directory that OpenVINO GenAI's `ContinuousBatchingPipeline` loads.

Writes `openvino_model.xml` and `.bin`, `config.json` and `generation_config.json`. No tokenizer is converted:
requests carry token ids, Hugging Face's tokenizer encodes and decodes, faster and without OpenVINO's
deviations for some Unicode input. (Structured output would need `openvino_detokenizer.xml`, from which GenAI
takes the vocabulary.) Tool: openvino 2026.4. The same checkpoint gives the same bytes. When killed, it leaves
a partial `out_dir`; hiding that is up to the caller.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolchain.errors import PlanError, combined, os_error
from toolchain.model.spec import ModelSpec, load_spec
from toolchain.plan.compat import flavour_problems
from toolchain.progress import Progress, Silent

if TYPE_CHECKING:
    from quantize.formats.checkpoint import QuantizedCheckpoint

MODEL_XML, MODEL_BIN = "openvino_model.xml", "openvino_model.bin"
GENERATION_CONFIG = "generation_config.json"


def build_ir(
    checkpoint_dir: Path, out_dir: Path, *, max_seq_len: int | None = None, events: Progress | None = None
) -> dict[str, Any]:
    """Write the IR of a checkpoint, plain or quantized in any form, into `out_dir`.

    Args:
        checkpoint_dir: config.json and safetensors.
        out_dir: made if it is not there.
        max_seq_len: the longest prompt and answer together that will be served; None for the model's
            `max_position_embeddings`.
        events: told the bytes of weights written.

    Returns:
        facts for the manifest: `weight_bytes`, `quantized_linears`, `max_seq_len`.

    Raises:
        ModelError: a tensor is missing or is not the one that config.json implies, or the form is not known.
        PlanError: the model has experts, or rotates positions differently at different lengths up to
            `max_seq_len`.
        StoreError: the file system refuses.
    """
    from quantize.formats.checkpoint import QuantizedCheckpoint

    spec = load_spec(checkpoint_dir)
    if problems := flavour_problems(spec, "openvino"):
        raise combined(problems)
    source = QuantizedCheckpoint.open(checkpoint_dir)
    source.verify(spec)
    max_seq_len = max_seq_len or spec.max_position_embeddings
    inv_freq = _inv_freq(spec, max_seq_len)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        facts = _write_model(source, spec, inv_freq, out_dir, events or Silent())
        shutil.copyfile(checkpoint_dir / "config.json", out_dir / "config.json")
        if (checkpoint_dir / GENERATION_CONFIG).exists():
            shutil.copyfile(checkpoint_dir / GENERATION_CONFIG, out_dir / GENERATION_CONFIG)
        else:
            _write_generation_config(spec, out_dir / GENERATION_CONFIG)
    except OSError as error:
        raise os_error(error, "write the OpenVINO model") from error
    return facts | {"max_seq_len": max_seq_len}


def _inv_freq(spec: ModelSpec, max_seq_len: int) -> NDArray[np.float64]:
    """The rotary frequencies, if they are the same for every length up to `max_seq_len`.

    Dynamic and LongRoPE switch frequencies when a sequence outgrows a limit. A cached key keeps the rotation
    that it was stored with, so that no constant is right on both sides of the switch.
    """
    inv_freq = spec.rope.inv_freq(1)
    if not np.array_equal(inv_freq, spec.rope.inv_freq(max_seq_len)):
        limit = min(spec.rope.original_max_position_embeddings, spec.rope.max_position_embeddings)
        raise PlanError(
            f"{spec.rope.kind} RoPE cannot be served up to {max_seq_len} tokens on the openvino flavour",
            where="engine.max_seq_len",
            why="its frequencies change with the sequence's length, but keys in the cache keep the old ones",
            fix=f"set engine.max_seq_len to at most {limit}",
        )
    return inv_freq


def _write_model(
    source: QuantizedCheckpoint,
    spec: ModelSpec,
    inv_freq: NDArray[np.float64],
    out_dir: Path,
    events: Progress,
) -> dict[str, Any]:
    from toolchain.engine.openvino.graph import build_model
    from toolchain.engine.openvino.irfile import Constants
    from toolchain.engine.openvino.weights import CheckpointWeights

    with (out_dir / MODEL_BIN).open("wb") as file:
        constants = Constants(file)
        weights = CheckpointWeights(source, spec, constants, events.advance)
        events.start("write the OpenVINO model", weights.stored_bytes, "bytes")
        constants.finish(build_model(spec, inv_freq, weights), out_dir / MODEL_XML)
    return {"weight_bytes": constants.nbytes, "quantized_linears": len(source.scheme.linears)}


def _write_generation_config(spec: ModelSpec, path: Path) -> None:
    """What a checkpoint without a generation_config.json implies."""
    ids = {"bos_token_id": spec.bos_token_id, "pad_token_id": spec.pad_token_id}
    config = {"eos_token_id": list(spec.eos_token_ids)} | {k: v for k, v in ids.items() if v is not None}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
