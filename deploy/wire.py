"""Requests and responses of Triton's gRPC protocol: Python values in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from toolchain.errors import UsageError

Array = np.ndarray[Any, Any]
_OPTIONAL_OUTPUTS = ("finish_reason", "num_output_tokens", "sequence_index")


def build_request(
    metadata: pb.ModelMetadataResponse,
    values: Mapping[str, Any],
    wishes: Mapping[str, Any],
    request_id: str = "",
) -> pb.ModelInferRequest:
    """The request with `values`, and with those of `wishes` that the model has an input for.

    Inputs get the data type and the number of dimensions that the model declares; all but the last are 1.

    Raises:
        UsageError: the model has no such input, or a value does not fit its data type.
    """
    inputs = {tensor.name: tensor for tensor in metadata.inputs}
    if unknown := [name for name in values if name not in inputs]:
        raise UsageError(
            f"the model {metadata.name!r} takes no {' and no '.join(unknown)}",
            fix=f"it takes {', '.join(sorted(inputs))}",
        )
    request = pb.ModelInferRequest(model_name=metadata.name, id=request_id)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, value in {**values, **{k: v for k, v in wishes.items() if k in inputs}}.items():
        array = _array(name, value, inputs[name].datatype)
        shape = [1] * (len(inputs[name].shape) - 1) + [array.size]
        request.inputs.add(name=name, datatype=inputs[name].datatype, shape=shape)
        raw = serialize_byte_tensor(array).item() if array.dtype == object else array.tobytes()
        request.raw_input_contents.append(raw)
    wanted = ["text_output", *_OPTIONAL_OUTPUTS]
    if values.get("return_log_probs"):
        wanted.append("output_log_probs")
    outputs = {tensor.name for tensor in metadata.outputs}
    if "text_output" not in outputs:
        raise UsageError(
            f"the model {metadata.name!r} does not answer with text",
            why=f"its outputs are {', '.join(sorted(outputs))}",
            fix="ask a model with the output text_output, such as ensemble",
        )
    for name in wanted:
        if name in outputs:
            request.outputs.add(name=name)
    return request


def build_stop_request(engine: str, request_id: str) -> pb.ModelInferRequest:
    """Upstream's request to `engine` to end the one with the same id; what it requires besides is ignored."""
    request = pb.ModelInferRequest(model_name=engine, id=request_id)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name in ("input_ids", "input_lengths", "request_output_len"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 1])
        request.raw_input_contents.append(np.zeros(1, np.int32).tobytes())
    request.inputs.add(name="stop", datatype="BOOL", shape=[1, 1])
    request.raw_input_contents.append(np.ones(1, bool).tobytes())
    return request


def read_outputs(response: pb.ModelInferResponse) -> dict[str, Array]:
    """The tensors of a response by name; strings are object arrays of bytes."""
    outputs: dict[str, Array] = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            flat = deserialize_bytes_tensor(raw)
        else:
            flat = np.frombuffer(raw, dtype=triton_to_np_dtype(tensor.datatype))
        outputs[tensor.name] = flat.reshape(tuple(tensor.shape))
    return outputs


def _array(name: str, value: Any, datatype: str) -> Array:
    """`value`, one or a sequence, as a flat array of Triton's `datatype`."""
    try:
        if datatype == "BYTES":
            items = list(value) if isinstance(value, list | tuple) else [value]
            if not all(isinstance(item, str | bytes) for item in items):
                raise TypeError("it is not text")
            encoded = [item.encode() if isinstance(item, str) else item for item in items]
            for item in encoded:
                item.decode()
            return np.array(encoded, dtype=object)
        dtype = np.dtype(triton_to_np_dtype(datatype))
        if dtype.kind not in "iu":
            return np.array([float(value)]).astype(dtype)
        if int(value) != value:
            raise ValueError("it is not a whole number")
        if not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            raise ValueError("it is out of range")
        return np.array([int(value)], dtype=dtype)
    except UnicodeError as error:
        raise UsageError(f"{name} is not valid UTF-8", why=str(error), fix="convert it to UTF-8") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{name} cannot be {value!r}", why=f"{error}; it is sent as {datatype}") from error
