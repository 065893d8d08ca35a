"""`verify_ranks`: a rank checkpoint run as tp x pp processes, and compared with its source."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from toolchain.engine.tensorrt.checklist import require_sound
from toolchain.engine.tensorrt.rank_config import RankConfig, load_rank_config
from toolchain.engine.tensorrt.verify.launch import run_ranks
from toolchain.engine.tensorrt.verify.rank_process import Job
from toolchain.engine.tensorrt.verify.reference import read_ends, write_reference
from toolchain.engine.tensorrt.verify.result import LayerError, Verification
from toolchain.engine.tensorrt.verify.tolerance import tolerance
from toolchain.errors import ModelError, ToolchainError, UsageError
from toolchain.gate.streamed import StreamedModel
from toolchain.model.spec import ModelSpec
from toolchain.progress import Progress, Silent

DEFAULT_TOKENS = 64

_SHAPES = (
    *("family", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim"),
)
_ARITHMETIC = ("rms_norm_eps", "rope", "qkv_bias", "o_bias", "mlp_bias", "qk_norm", "moe")


def verify_ranks(
    checkpoint: Path,
    source: Path,
    *,
    tokens: Sequence[int] | None = None,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Verification:
    """Run the ranks in `checkpoint` as processes, each with its own file, beside the model in `source`.

    Weights are what the codes stand for, and everything is computed in float32. Activations and the KV cache
    are not rounded on either side: that is the kernels' doing, and no part of what a rank file divides.

    Args:
        checkpoint: `config.json` and the rank files.
        source: the Hugging Face checkpoint that it was made from, plain or quantized in a known form.
        tokens: what is run; 64 random ones by default.
        backend: "gloo" (CPU), "nccl" (a GPU for each rank), or "auto": nccl where there are enough GPUs.
        progress: is told of layers.

    Raises:
        ModelError: one of the two is damaged, or they are not of one model.
        UsageError: the tokens are not the model's.
        ToolchainError: there are too few GPUs for nccl.
        BuildError: a rank's process died.
    """
    progress, started = progress or Silent(), time.monotonic()
    found = require_sound(checkpoint, values=True)
    config = load_rank_config(checkpoint)
    model = StreamedModel(source, device=torch.device("cpu"), simulate=False)
    require_same_model(config, model.spec, source)
    tokens_S = _tokens(tokens, model.spec)
    world = config.mapping.files
    result = Verification(
        checkpoint=checkpoint,
        source=source,
        backend=_backend(backend, world),
        tensor=config.mapping.tp,
        pipeline=config.mapping.pp,
        tokens=len(tokens_S),
        allowed=tolerance(model.checkpoint, config),
        differences=arithmetic_differences(config.spec, model.spec),
        findings=found,
    )
    spec = replace(config.spec, sliding_windows=model.spec.sliding_windows)
    with tempfile.TemporaryDirectory(prefix="llmbuild-verify-") as work:
        job = Job(checkpoint, Path(work), spec, world, result.backend)
        write_reference(model, tokens_S, job.work_dir, progress)
        del model
        progress.start(f"run {world} rank{'s' * (world > 1)}", spec.num_hidden_layers, "layers")
        run_ranks(job, lambda event: _take(event, result, progress))
        _compare(job, result)
    result.layers.sort(key=lambda layer: layer.layer)
    result.seconds = time.monotonic() - started
    return result


def require_same_model(config: RankConfig, source: ModelSpec, where: Path) -> None:
    """Raise ModelError where the ranks cannot have been made from a model such as `source`."""
    wrong = [
        f"{name} is {getattr(config.spec, name)}, not {getattr(source, name)}"
        for name in _SHAPES
        if getattr(config.spec, name) != getattr(source, name)
    ]
    if config.spec.vocab_size < source.vocab_size:
        wrong.append(f"vocab_size is {config.spec.vocab_size}, not {source.vocab_size}")
    if wrong:
        raise ModelError(
            "the ranks were not made from this model",
            where=str(config.directory),
            why=f"beside {where}: {'; '.join(wrong)}",
            fix="name the checkpoint that was converted: --source DIR",
        )


def arithmetic_differences(spec: ModelSpec, source: ModelSpec) -> list[str]:
    """What the two say of the arithmetic, field by field, where they differ."""
    found = []
    for name in _ARITHMETIC:
        ours, theirs = getattr(spec, name), getattr(source, name)
        if ours == theirs:
            continue
        inner = [field.name for field in fields(ours)] if hasattr(ours, "__dataclass_fields__") else []
        if ours is None or theirs is None or not inner:
            found.append(f"{name} is {ours}, and {theirs} in the source")
        found += [
            f"{name}.{part} is {getattr(ours, part)}, and {getattr(theirs, part)} in the source"
            for part in inner
            if theirs is not None and getattr(ours, part) != getattr(theirs, part)
        ]
    return found


def _tokens(given: Sequence[int] | None, spec: ModelSpec) -> Tensor:
    if given is None:
        generator = torch.Generator().manual_seed(0)
        count = min(DEFAULT_TOKENS, spec.max_position_embeddings)
        return torch.randint(spec.vocab_size, (count,), generator=generator)
    wrong = [token for token in given if not 0 <= token < spec.vocab_size]
    if wrong or not given:
        raise UsageError(
            f"{wrong[0]} is no token" if wrong else "there are no tokens to run",
            where="--tokens",
            why=f"the model has tokens 0 to {spec.vocab_size - 1}",
        )
    if len(given) > spec.max_position_embeddings:
        raise UsageError(
            f"{len(given)} tokens are more than the model's context of {spec.max_position_embeddings}",
            where="--tokens",
        )
    return torch.tensor(list(given))


def _backend(wanted: str, world: int) -> str:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "nccl" if gpus >= world else "gloo"
    if wanted == "nccl" and gpus < world:
        raise ToolchainError(
            f"nccl needs a GPU for each of the {world} ranks, and there are {gpus}",
            where="--backend",
            fix="--backend gloo runs them on the CPU",
        )
    return wanted


def _take(event: dict[str, Any], result: Verification, progress: Progress) -> None:
    if "layer" in event:
        result.layers.append(LayerError(**event))
        progress.advance()
    elif "part" in event:
        setattr(result, event["part"], event["error"])
    elif "done" in event:
        result.peak_memory = max(result.peak_memory, event["peak_memory"])


def _compare(job: Job, result: Verification) -> None:
    """The logits of the ranks beside those of the source."""
    expected_SV = read_ends(job.work_dir)["logits"]
    got_SV = load_file(job.logits)["logits"]
    result.max_logit_difference = float((got_SV - expected_SV).abs().max())
    result.logit_range = float(expected_SV.std())
    result.top1 = float((got_SV.argmax(-1) == expected_SV.argmax(-1)).float().mean())
