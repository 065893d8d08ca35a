"""What the repositories of all flavours share: the models around the engine, and how files get there.

    ensemble         -> preprocessing -> tensorrt_llm (-> postprocessing, if the engine makes no text)
    tensorrt_llm_bls -> the same as a script

Every path in a repository is relative to its root, so that it can be moved. Our Python models find it
themselves; engines that take paths as they are find it because a server is started there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import tensors
from deploy.check import check_repository
from deploy.pbtxt import CONFIG, ensemble_config, model_config, write_config
from toolchain.errors import PackageError, os_error

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

SOURCES = Path(__file__).parents[1] / "triton_repo"
TOKENIZER = "preprocessing/1/tokenizer"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
ENGINE_MODEL = "tensorrt_llm"


@dataclass(frozen=True, kw_only=True)
class Served:
    """What every repository behind the front's models says of its model and of its limits.

    Args:
        vocab_size: of the model; the tokenizer's may be smaller.
        end_ids: tokens that end a sequence; the first is the one told to clients.
        pad_id: fills rows of a batch.
        max_batch_size: sequences at the same time; of every model in the repository.
        max_queue_size: sequences beyond those that may wait; 0: any number.
        streaming: decoupled: several responses to a request.
        accumulate_tokens: of `tensorrt_llm_bls`: text_output is all the text so far.
        add_special_tokens, skip_special_tokens: of the tokenizer.
        preprocessing_instance_count, postprocessing_instance_count, bls_instance_count: processes of each.
    """

    vocab_size: int
    end_ids: tuple[int, ...]
    pad_id: int
    max_batch_size: int
    max_queue_size: int = 0
    streaming: bool = True
    accumulate_tokens: bool = False
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    preprocessing_instance_count: int = 1
    postprocessing_instance_count: int = 1
    bls_instance_count: int = 1


def max_requests(max_batch_size: int, max_queue_size: int) -> int:
    """Requests that a scripted front works on at a time: those that run, and those that wait."""
    return max_batch_size + (max_queue_size or max_batch_size)


@dataclass(frozen=True)
class Front:
    """The models between a client and the engine.

    Args:
        served: the model and its limits.
        engine_makes_text: it answers with `text_output` and `finish_reason`, not with tokens alone.
        supply_end_ids: give the engine the end ids with each request, which otherwise knows them.
        renamed: the engine's own names for some of its inputs, by ours.
        types: by tensor, the types that differ from `deploy.tensors`.
        draft_model: the model that drafts for speculative decoding; None: there is none.
        takes_draft: `tensorrt_llm_bls` declares the inputs for drafting, as upstream's does.
    """

    served: Served
    engine_makes_text: bool
    supply_end_ids: bool
    renamed: Mapping[str, str] | None = None
    types: Mapping[str, str] | None = None
    draft_model: str | None = None
    takes_draft: bool = False

    @property
    def straight(self) -> dict[str, str]:
        """Input of the engine -> input of the ensemble, for what needs no preprocessing."""
        renamed = self.renamed or {}
        return {renamed.get(engine, engine): ours for engine, ours in tensors.STRAIGHT_TO_ENGINE.items()}

    @property
    def outputs(self) -> tuple[tensors.Tensor, ...]:
        """Outputs of `ensemble` and `tensorrt_llm_bls`."""
        reason = (tensors.FINISH_REASON,) if self.engine_makes_text else ()
        return (tensors.TEXT_OUTPUT, *reason, *tensors.varied(tensors.EXTRA_OUTPUTS, self.types or {}))


def front_configs(front: Front) -> dict[str, ModelConfig]:
    """The configurations of `ensemble`, `preprocessing`, `postprocessing` and `tensorrt_llm_bls`."""
    inputs = tensors.varied(tensors.TEXT_INPUTS, front.types or {})
    served = front.served
    batch = served.max_batch_size
    tokenizer = {"tokenizer_dir": TOKENIZER}
    return {
        "ensemble": ensemble_config(
            "ensemble",
            inputs=inputs,
            outputs=front.outputs,
            max_batch_size=batch,
            decoupled=served.streaming,
            steps=_ensemble_steps(front),
        ),
        "preprocessing": model_config(
            "preprocessing",
            inputs=tensors.PREPROCESSING_INPUTS,
            outputs=tensors.PREPROCESSING_OUTPUTS,
            max_batch_size=batch,
            instances=served.preprocessing_instance_count,
            parameters=tokenizer
            | {
                "add_special_tokens": flag(served.add_special_tokens),
                "vocab_size": str(served.vocab_size),
                "end_ids": ",".join(map(str, served.end_ids)),
                "supply_end_ids": flag(front.supply_end_ids),
                "pad_id": str(served.pad_id),
            },
        ),
        "postprocessing": model_config(
            "postprocessing",
            inputs=tensors.POSTPROCESSING_INPUTS,
            outputs=tensors.POSTPROCESSING_OUTPUTS,
            max_batch_size=batch,
            instances=served.postprocessing_instance_count,
            parameters=tokenizer | {"skip_special_tokens": flag(served.skip_special_tokens)},
        ),
        "tensorrt_llm_bls": model_config(
            "tensorrt_llm_bls",
            inputs=(*inputs, *(tensors.DRAFT_INPUTS if front.takes_draft else ())),
            outputs=front.outputs,
            max_batch_size=batch,
            decoupled=served.streaming,
            instances=served.bls_instance_count,
            parameters={
                "accumulate_tokens": flag(served.accumulate_tokens),
                "engine_reports_finish": flag(front.engine_makes_text),
                "tensorrt_llm_model_name": ENGINE_MODEL,
                "max_requests": str(max_requests(batch, served.max_queue_size)),
                "to_preprocessing": json.dumps(tensors.TO_PREPROCESSING),
                "from_preprocessing": json.dumps(tensors.FROM_PREPROCESSING),
                "straight_to_engine": json.dumps(front.straight),
                "extra_outputs": json.dumps([tensor.name for tensor in front.outputs[1:]]),
            }
            | ({"tensorrt_llm_draft_model_name": front.draft_model} if front.draft_model else {}),
        ),
    }


def _ensemble_steps(front: Front) -> list[tuple[str, Mapping[str, str], Mapping[str, str]]]:
    between = {theirs: f"_{theirs}" for theirs in tensors.FROM_PREPROCESSING.values()}
    to_engine = {ours: between[theirs] for ours, theirs in tensors.FROM_PREPROCESSING.items()}
    to_engine |= front.straight
    names = {tensor.name: tensor.name for tensor in front.outputs}
    first = ("preprocessing", tensors.TO_PREPROCESSING, between)
    if front.engine_makes_text:
        return [first, (ENGINE_MODEL, to_engine, names)]
    del names["text_output"]
    tokens = {"output_ids": "_TOKENS_BATCH", "sequence_length": "_SEQUENCE_LENGTH"}
    to_text = {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"}
    return [
        first,
        (ENGINE_MODEL, to_engine, tokens | names),
        ("postprocessing", to_text, {"OUTPUT": "text_output"}),
    ]


FRONT_SOURCES = {name: SOURCES / name for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls")}


def write_repository(
    out_dir: Path,
    configs: Mapping[str, ModelConfig],
    sources: Mapping[str, Path],
    linked: Iterable[tuple[Path, Iterable[str], str]],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a repository into `out_dir`, which must not exist or be empty, and check it.

    Args:
        out_dir: its root.
        configs: each model's configuration.
        sources: for models of the Python backend, the directory with their .py files.
        linked: (directory, names in it, place in the repository) of files that are hard-linked, or copied
            where the file system has no links across this boundary.
        texts: further small files, by place in the repository.

    Raises:
        PackageError: the directory is in use, or the result could not be loaded.
        StoreError: the file system refuses.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise PackageError("the directory for the repository is not empty", where=str(out_dir))
    try:
        for name, config in configs.items():
            (out_dir / name / "1").mkdir(parents=True)
            write_config(config, out_dir / name / CONFIG)
        for name, source in sources.items():
            for file in sorted(source.glob("*.py")):
                shutil.copyfile(file, out_dir / name / "1" / file.name)
        for directory, names, place in linked:
            _link_files(directory, names, out_dir / place)
        for place, text in (texts or {}).items():
            (out_dir / place).write_text(text, encoding="utf-8")
    except OSError as error:
        raise os_error(error, "write the model repository") from error
    check_repository(out_dir)


def models_digest() -> str:
    """sha256 of the sources of the models: a repository is made anew when they change."""
    digest = hashlib.sha256()
    for file in sorted(SOURCES.rglob("*.py")):
        digest.update(f"{file.relative_to(SOURCES)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def files_in(directory: Path) -> list[str]:
    """Every file below `directory`, relative to it."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def checkpoint_files(directory: Path) -> list[str]:
    """The files in `directory` that are a model: weights, configuration, tokenizer."""
    patterns = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
    return sorted({path.name for pattern in patterns for path in directory.glob(pattern)})


def tokenizer_files(directory: Path) -> list[str]:
    """The files in `directory` that belong to its tokenizer."""
    return [name for name in TOKENIZER_FILES if (directory / name).is_file()]


def flag(value: bool) -> str:
    """A parameter's truth value."""
    return "true" if value else "false"


def _link_files(source: Path, names: Iterable[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        original = (source / name).resolve()
        try:
            os.link(original, destination)
        except OSError:
            shutil.copyfile(original, destination)
