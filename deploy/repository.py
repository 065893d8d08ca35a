"""Render a Triton model repository that Triton can load, wherever it is moved to.

    ensemble         -> preprocessing -> tensorrt_llm (the engine and its detokenizer)
    tensorrt_llm_bls -> preprocessing -> tensorrt_llm                     accumulate_tokens false, the default
                     -> preprocessing -> tensorrt_llm -> postprocessing   accumulate_tokens true

The sources of the models are in `deploy/triton_repo/`; its README says how they behave. Everything that
a repository needs lies inside it: paths in `config.pbtxt` are relative to its root.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy import tensors
from deploy.check import check_repository
from deploy.pbtxt import CONFIG, ensemble_config, model_config, write_config
from toolchain.errors import PackageError, os_error

__all__ = ["RepositorySettings", "check_repository", "models_digest", "render_openvino"]

SOURCES = Path(__file__).parent / "triton_repo"
TOKENIZER = "preprocessing/1/tokenizer"
ENGINE = "tensorrt_llm/1/engine"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class RepositorySettings:
    """What a repository of the OpenVINO flavour serves, and within which limits.

    Upstream's names where it has one. Tokens are counted in tokens, not blocks.
    """

    engine_dir: Path  # openvino_model.xml and .bin; hard-linked where possible
    tokenizer_dir: Path  # tokenizer.json, and what belongs to it
    vocab_size: int  # of the model; the tokenizer's may be smaller
    end_ids: tuple[int, ...]  # tokens that end a sequence; the first is the one told to clients
    pad_id: int
    max_seq_len: int  # prompt and output together
    max_batch_size: int = 8  # sequences in the batch at one time
    max_num_tokens: int = 2048  # tokens in one step, prompts and generation together
    max_tokens_in_paged_kv_cache: int | None = None  # None: max_batch_size full sequences
    enable_kv_cache_reuse: bool = True  # equal beginnings of prompts share their cache
    enable_chunked_context: bool = True  # a long prompt may be split over steps
    batching: str = "inflight_fused"  # or static: a batch runs until its longest answer is done
    batch_scheduler_policy: str = "guaranteed_no_evict"  # or max_utilization
    max_queue_size: int = 0  # sequences that may wait; 0: any number
    streaming: bool = True  # decoupled: several responses to a request
    stream_interval: int | None = None  # tokens a streamed response, after the first; None: by load
    cancellation_check_period_ms: int = 100
    exclude_input_in_output: bool = True
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    accumulate_tokens: bool = False  # of tensorrt_llm_bls: text_output is all the text so far
    preprocessing_instance_count: int = 1
    postprocessing_instance_count: int = 1  # idle unless accumulate_tokens, or asked directly
    plugin_properties: Mapping[str, str] = field(default_factory=dict)  # of OpenVINO's CPU plugin

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.max_tokens_in_paged_kv_cache or self.max_batch_size * self.max_seq_len


def render_openvino(out_dir: Path, settings: RepositorySettings) -> None:
    """Write a repository into `out_dir`, which must not exist or be empty, and check it.

    The same settings give the same bytes. Raises PackageError when the result could not be loaded.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise PackageError("the directory for the repository is not empty", where=str(out_dir))
    try:
        for name, config in _configs(settings).items():
            version = out_dir / name / "1"
            version.mkdir(parents=True)
            write_config(config, out_dir / name / CONFIG)
        for name, source in (
            ("preprocessing", SOURCES / "preprocessing"),
            ("postprocessing", SOURCES / "postprocessing"),
            ("tensorrt_llm_bls", SOURCES / "tensorrt_llm_bls"),
            ("tensorrt_llm", SOURCES / "openvino" / "tensorrt_llm"),
        ):
            for file in sorted(source.glob("*.py")):
                shutil.copyfile(file, out_dir / name / "1" / file.name)
        _link_files(settings.engine_dir, _files(settings.engine_dir), out_dir / ENGINE)
        tokenizer_files = [name for name in TOKENIZER_FILES if (settings.tokenizer_dir / name).is_file()]
        _link_files(settings.tokenizer_dir, tokenizer_files, out_dir / TOKENIZER)
    except OSError as error:
        raise os_error(error, "write the model repository") from error
    check_repository(out_dir)


def models_digest() -> str:
    """sha256 of the sources of the models: a repository is made anew when they change."""
    digest = hashlib.sha256()
    for file in sorted(SOURCES.rglob("*.py")):
        digest.update(f"{file.relative_to(SOURCES)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _configs(settings: RepositorySettings) -> dict[str, object]:
    batch, decoupled = settings.max_batch_size, settings.streaming
    end_id = settings.end_ids[0] if settings.end_ids else -1
    text_outputs = (tensors.TEXT_OUTPUT, tensors.FINISH_REASON, *tensors.EXTRA_OUTPUTS)
    tokenizer = {"tokenizer_dir": TOKENIZER}
    return {
        "ensemble": ensemble_config(
            "ensemble",
            inputs=tensors.TEXT_INPUTS,
            outputs=text_outputs,
            max_batch_size=batch,
            decoupled=decoupled,
            steps=_ensemble_steps(text_outputs),
        ),
        "preprocessing": model_config(
            "preprocessing",
            inputs=tensors.PREPROCESSING_INPUTS,
            outputs=tensors.PREPROCESSING_OUTPUTS,
            max_batch_size=batch,
            instances=settings.preprocessing_instance_count,
            parameters=tokenizer
            | {
                "add_special_tokens": _flag(settings.add_special_tokens),
                "vocab_size": str(settings.vocab_size),
                "end_id": str(end_id),
                "pad_id": str(settings.pad_id),
            },
        ),
        "postprocessing": model_config(
            "postprocessing",
            inputs=tensors.POSTPROCESSING_INPUTS,
            outputs=tensors.POSTPROCESSING_OUTPUTS,
            max_batch_size=batch,
            instances=settings.postprocessing_instance_count,
            parameters=tokenizer | {"skip_special_tokens": _flag(settings.skip_special_tokens)},
        ),
        "tensorrt_llm": model_config(
            "tensorrt_llm",
            inputs=tensors.ENGINE_INPUTS,
            outputs=(*tensors.ENGINE_OUTPUTS, tensors.TEXT_OUTPUT, tensors.FINISH_REASON),
            max_batch_size=batch,
            decoupled=decoupled,
            parameters=tokenizer | _engine_parameters(settings),
        ),
        "tensorrt_llm_bls": model_config(
            "tensorrt_llm_bls",
            inputs=tensors.TEXT_INPUTS,
            outputs=text_outputs,
            max_batch_size=batch,
            decoupled=decoupled,
            parameters={
                "accumulate_tokens": _flag(settings.accumulate_tokens),
                "engine_reports_finish": "true",
                "tensorrt_llm_model_name": "tensorrt_llm",
                "max_requests": str(batch + (settings.max_queue_size or batch)),
                "to_preprocessing": json.dumps(tensors.TO_PREPROCESSING),
                "from_preprocessing": json.dumps(tensors.FROM_PREPROCESSING),
                "straight_to_engine": json.dumps(tensors.STRAIGHT_TO_ENGINE),
                "extra_outputs": json.dumps([tensor.name for tensor in text_outputs[1:]]),
            },
        ),
    }


def _engine_parameters(settings: RepositorySettings) -> dict[str, str]:
    return {
        "gpt_model_type": "V1" if settings.batching == "static" else "inflight_fused_batching",
        "gpt_model_path": ENGINE,
        "max_beam_width": "1",
        "max_seq_len": str(settings.max_seq_len),
        "max_num_tokens": str(settings.max_num_tokens),
        "max_queue_size": str(settings.max_queue_size),
        "max_tokens_in_paged_kv_cache": str(settings.cache_tokens),
        "batch_scheduler_policy": settings.batch_scheduler_policy,
        "enable_kv_cache_reuse": _flag(settings.enable_kv_cache_reuse),
        "enable_chunked_context": _flag(settings.enable_chunked_context),
        "exclude_input_in_output": _flag(settings.exclude_input_in_output),
        "skip_special_tokens": _flag(settings.skip_special_tokens),
        "stream_interval": str(settings.stream_interval or 0),
        "cancellation_check_period_ms": str(settings.cancellation_check_period_ms),
        "vocab_size": str(settings.vocab_size),
        "end_id": ",".join(map(str, settings.end_ids)),
        "pad_id": str(settings.pad_id),
        "plugin_properties": json.dumps(dict(settings.plugin_properties), sort_keys=True),
    }


def _ensemble_steps(
    text_outputs: Iterable[tensors.Tensor],
) -> list[tuple[str, Mapping[str, str], Mapping[str, str]]]:
    between = {theirs: f"_{theirs}" for theirs in tensors.FROM_PREPROCESSING.values()}
    to_engine = {ours: between[theirs] for ours, theirs in tensors.FROM_PREPROCESSING.items()}
    return [
        ("preprocessing", tensors.TO_PREPROCESSING, between),
        (
            "tensorrt_llm",
            to_engine | tensors.STRAIGHT_TO_ENGINE,
            {tensor.name: tensor.name for tensor in text_outputs},
        ),
    ]


def _files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _link_files(source: Path, names: Iterable[str], target: Path) -> None:
    """Hard links, or copies where the file system has none across this boundary."""
    target.mkdir(parents=True)
    for name in names:
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        original = (source / name).resolve()
        try:
            os.link(original, destination)
        except OSError:
            shutil.copyfile(original, destination)


def _flag(value: bool) -> str:
    return "true" if value else "false"
