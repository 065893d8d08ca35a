"""`tensorrt_llm_bls`: the same as `ensemble`, scripted.

    accumulate_tokens false   preprocessing, engine; the text is the engine's, if it makes one
    accumulate_tokens true    preprocessing, engine, postprocessing

Two things that an ensemble cannot do: with `accumulate_tokens` it gives `postprocessing` all the tokens so
far, so that each response holds the whole text and no character or space is lost between them; and when
the client goes away it stops the request in the engine, which an ensemble lets run to its end.
Each request runs in a thread of its own; there are as many as the engine takes sequences.
"""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class _StepError(Exception):
    """A composing model answered with an error, which is passed on as it is."""

    def __init__(self, error: object) -> None:
        super().__init__(error.message())
        self.error = error


class TritonPythonModel:
    """The model as Triton's Python backend loads it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the maps between tensors that the repository was rendered with."""
        config = json.loads(args["model_config"])
        values = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        self._engine = values["tensorrt_llm_model_name"]
        self._accumulate = values["accumulate_tokens"].lower() in ("true", "1")
        self._engine_reports_finish = values["engine_reports_finish"].lower() in ("true", "1")
        self._to_preprocessing = json.loads(values["to_preprocessing"])
        self._from_preprocessing = json.loads(values["from_preprocessing"])
        self._straight_to_engine = json.loads(values["straight_to_engine"])
        self._extra_outputs = json.loads(values["extra_outputs"])
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._threads = ThreadPoolExecutor(int(values["max_requests"]), thread_name_prefix="request")

    def execute(self, requests: list) -> None:
        """Hand each request to a thread."""
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            self._threads.submit(self._serve, inputs, request.get_response_sender())

    def finalize(self) -> None:
        """Triton calls this when no request is under way."""
        self._threads.shutdown()

    def _serve(self, inputs: dict[str, np.ndarray], sender: object) -> None:
        try:
            self._answer(inputs, sender)
        except _StepError as step:
            sender.send(pb_utils.InferenceResponse(error=step.error), FINAL)
        except Exception as error:  # a thread that dies silently would leave its client waiting
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(repr(error))), FINAL)

    def _answer(self, inputs: dict[str, np.ndarray], sender: object) -> None:
        engine_inputs = self._preprocess(inputs)
        if not self._decoupled:
            outputs = _outputs(_request(self._engine, engine_inputs).exec())
            sender.send(self._response(outputs, outputs), FINAL)
            return
        request_id = f"bls-{uuid.uuid4()}"
        streaming = bool(engine_inputs.get("streaming", np.zeros(1)).any())
        tokens: dict[tuple[int, int], np.ndarray] = {}  # (batch row, return sequence) -> all so far
        cancelled, finished = False, 0
        for response in _request(self._engine, engine_inputs, request_id).exec(decoupled=True):
            if cancelled:
                continue  # until the engine has let go
            if sender.is_cancelled():
                cancelled = True
                self._stop(engine_inputs, request_id)
                continue
            outputs = _outputs(response)
            if not outputs:
                continue  # only the final flag
            so_far = outputs
            if streaming and self._accumulate:
                which = (_first(outputs, "batch_index"), _first(outputs, "sequence_index"))
                new = outputs["output_ids"]
                tokens[which] = np.concatenate([tokens[which], new], axis=2) if which in tokens else new
                so_far = {
                    "output_ids": tokens[which],
                    "sequence_length": np.full(new.shape[:2], tokens[which].shape[2], dtype=np.int32),
                }
            sender.send(self._response(outputs, so_far))
            finished += "finish_reason" in outputs
        if cancelled:
            error = pb_utils.TritonError("the client cancelled the request", pb_utils.TritonError.CANCELLED)
            sender.send(pb_utils.InferenceResponse(error=error), FINAL)
        elif self._engine_reports_finish and finished < _expected_finishes(engine_inputs, streaming):
            # Triton 2.51 keeps an error that follows responses from us; its absence of an end does not.
            raise RuntimeError("the engine failed in the middle of the request")
        else:
            sender.send(flags=FINAL)

    def _preprocess(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {theirs: inputs[ours] for theirs, ours in self._to_preprocessing.items() if ours in inputs}
        made = _outputs(_request("preprocessing", given).exec())
        result = {theirs: made[ours] for theirs, ours in self._from_preprocessing.items() if ours in made}
        return result | {
            theirs: inputs[ours] for theirs, ours in self._straight_to_engine.items() if ours in inputs
        }

    def _response(self, outputs: dict[str, np.ndarray], so_far: dict[str, np.ndarray]) -> object:
        """A response with the text of `so_far` and the other outputs of the engine's response."""
        if self._accumulate or "text_output" not in outputs:
            to_decode = {"TOKENS_BATCH": so_far["output_ids"], "SEQUENCE_LENGTH": so_far["sequence_length"]}
            text = _outputs(_request("postprocessing", to_decode).exec())["OUTPUT"]
        else:
            text = outputs["text_output"]
        passed = {name: outputs[name] for name in self._extra_outputs if name in outputs}
        tensors = {"text_output": text} | passed
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])

    def _stop(self, engine_inputs: dict[str, np.ndarray], request_id: str) -> None:
        needed = ("input_lengths", "request_output_len")
        inputs = {name: engine_inputs[name] for name in needed}
        inputs["stop"] = np.ones((len(inputs["input_lengths"]), 1), dtype=bool)
        for response in _request(self._engine, inputs, request_id).exec(decoupled=True):
            _outputs(response)


def _request(model: str, inputs: dict[str, np.ndarray], request_id: str = "") -> object:
    return pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        requested_output_names=[],
        request_id=request_id,
    )


def _outputs(response: object) -> dict[str, np.ndarray]:
    """A composing model's outputs. Raises _StepError with its error."""
    if response.has_error():
        raise _StepError(response.error())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def _expected_finishes(engine_inputs: dict[str, np.ndarray], streaming: bool) -> int:
    """How many responses say that a sequence is finished: one a sequence, or one for all."""
    returns = _first(engine_inputs, "num_return_sequences") or 1
    return len(engine_inputs["input_ids"]) * returns if streaming else 1


def _first(outputs: dict[str, np.ndarray], name: str) -> int:
    return int(outputs[name].flat[0]) if name in outputs else 0
