"""`config.pbtxt`, typed: build a `ModelConfig`, write it, read it back. No string templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.tensors import Tensor
from toolchain.errors import PackageError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = "config.pbtxt"


def model_config(
    name: str,
    *,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    max_batch_size: int,
    decoupled: bool = False,
    parameters: Mapping[str, str] | None = None,
    instances: int = 1,
    backend: str = "python",
    kind: str = "KIND_CPU",
) -> ModelConfig:
    """A model of one of Triton's backends. `kind`: who chooses its devices; KIND_MODEL: the backend does."""
    config = _base(name, inputs, outputs, max_batch_size, decoupled)
    config.backend = backend
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    group = config.instance_group.add()
    group.count = instances
    group.kind = group.Kind.Value(kind)
    return config


def batch_dynamically(config: ModelConfig, *, max_queue_size: int, max_queue_delay_us: int) -> None:
    """Let Triton gather requests of `config` into batches: of max_batch_size where it can, 0: no limit."""
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(config.max_batch_size)
    batching.max_queue_delay_microseconds = max_queue_delay_us
    batching.default_queue_policy.max_queue_size = max_queue_size


def ensemble_config(
    name: str,
    *,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    max_batch_size: int,
    decoupled: bool,
    steps: Iterable[tuple[str, Mapping[str, str], Mapping[str, str]]],
) -> ModelConfig:
    """An ensemble; each step is (model, its input -> ensemble tensor, its output -> ensemble tensor)."""
    config = _base(name, inputs, outputs, max_batch_size, decoupled)
    config.platform = "ensemble"
    for model, input_map, output_map in steps:
        step = config.ensemble_scheduling.step.add()
        step.model_name = model
        step.model_version = -1
        step.input_map.update(input_map)
        step.output_map.update(output_map)
    return config


def write_config(config: ModelConfig, path: Path) -> None:
    """Write as text; the same config gives the same bytes."""
    from google.protobuf import text_format

    path.write_text(text_format.MessageToString(config), encoding="utf-8")


def read_config(path: Path) -> ModelConfig:
    """Parse a `config.pbtxt`. Raises PackageError with the line when Triton could not."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise PackageError("not a Triton model configuration", where=str(path), why=str(error)) from None


def _base(
    name: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor], max_batch_size: int, decoupled: bool
) -> ModelConfig:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config = ModelConfig(name=name, max_batch_size=max_batch_size)
    for tensor in inputs:
        entry = config.input.add()
        _describe(entry, tensor)
        entry.optional = tensor.optional
        entry.allow_ragged_batch = tensor.ragged
    for tensor in outputs:
        _describe(config.output.add(), tensor)
    if decoupled:
        config.model_transaction_policy.decoupled = True
    return config


def _describe(entry: Any, tensor: Tensor) -> None:
    from tritonclient.grpc.model_config_pb2 import DataType

    entry.name = tensor.name
    entry.data_type = DataType.Value(f"TYPE_{tensor.type}")
    entry.dims.extend(tensor.dims)
    if tensor.scalar:
        entry.reshape.SetInParent()
