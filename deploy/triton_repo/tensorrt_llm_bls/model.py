"""`tensorrt_llm_bls`: the same as `ensemble`, scripted.

    accumulate_tokens false   preprocessing, engine, and postprocessing if the engine makes no text itself
    accumulate_tokens true    preprocessing, engine, postprocessing

Three things that an ensemble cannot do. It keeps the tokens of a streamed answer, so that no character or
space is lost between two responses, and with `accumulate_tokens` each response holds all the text so far.
When the client goes away it stops the request in the engine, which an ensemble lets run to its end. And
with a draft model it lets that guess tokens, which the engine then accepts or corrects (`speculation.py`).
Each request runs in a thread of its own; there are as many as the engine takes sequences.
"""

from __future__ import annotations

import json
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # before site-packages: our neighbours have plain names

import numpy as np
import triton_python_backend_utils as pb_utils
from speculation import speculate
from text_so_far import TextSoFar

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class InvalidRequestError(ValueError):
    """The request cannot be served; the message says which input and why."""


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
        self._draft = values.get("tensorrt_llm_draft_model_name", "")
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
        except InvalidRequestError as problem:
            error = pb_utils.TritonError(str(problem), pb_utils.TritonError.INVALID_ARG)
            sender.send(pb_utils.InferenceResponse(error=error), FINAL)
        except Exception as error:  # a thread that dies silently would leave its client waiting
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(repr(error))), FINAL)

    def _answer(self, inputs: dict[str, np.ndarray], sender: object) -> None:
        drafts = _first(inputs, "num_draft_tokens")
        if drafts > 0 and not self._draft:
            raise InvalidRequestError("num_draft_tokens is given, but this server has no draft model")
        engine_inputs = self._preprocess(inputs)
        if drafts > 0:
            self._speculate(inputs, engine_inputs, sender)
        elif self._decoupled:
            self._stream(engine_inputs, sender)
        else:
            outputs = _outputs(_request(self._engine, engine_inputs).exec())
            sender.send(self._response(outputs), FINAL)

    def _stream(self, engine_inputs: dict[str, np.ndarray], sender: object) -> None:
        request_id = f"bls-{uuid.uuid4()}"
        streaming = bool(engine_inputs.get("streaming", np.zeros(1)).any())
        answers: dict[tuple[int, int], TextSoFar] = {}  # by batch row and return sequence
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
            if streaming and (self._accumulate or "text_output" not in outputs):
                which = (_first(outputs, "batch_index"), _first(outputs, "sequence_index"))
                answer = answers.setdefault(which, TextSoFar(self._decode))
                answer.add(outputs["output_ids"], outputs["sequence_length"])
                text = answer.all() if self._accumulate else answer.new()
                sender.send(self._with_text(outputs, text))
            else:
                sender.send(self._response(outputs))
            finished += "finish_reason" in outputs
        if cancelled:
            sender.send(pb_utils.InferenceResponse(error=_cancelled()), FINAL)
        elif self._engine_reports_finish and finished < _expected_finishes(engine_inputs, streaming):
            # Triton 2.51 keeps an error that follows responses from us; its absence of an end does not.
            raise RuntimeError("the engine failed in the middle of the request")
        else:
            self._send_held_back(answers, sender)
            sender.send(flags=FINAL)

    def _send_held_back(self, answers: dict[tuple[int, int], TextSoFar], sender: object) -> None:
        """What looked like the beginning of a character, and was the end of the text."""
        for (row, sequence), answer in answers.items():
            if not self._accumulate and (text := answer.held_back()):
                where = {"batch_index": np.array([[row]], np.int32)}
                where["sequence_index"] = np.array([[sequence]], np.int32)
                sender.send(self._with_text(where, np.array([[text.encode()]], dtype=object)))

    def _speculate(
        self, inputs: dict[str, np.ndarray], engine_inputs: dict[str, np.ndarray], sender: object
    ) -> None:
        if len(engine_inputs["input_ids"]) > 1:
            raise InvalidRequestError("speculative decoding takes one prompt a request")
        if _first(engine_inputs, "num_return_sequences") > 1 or _first(engine_inputs, "beam_width") > 1:
            raise InvalidRequestError("speculative decoding makes one sequence a request")
        streaming = self._decoupled and bool(engine_inputs.pop("streaming", np.zeros(1)).any())
        answer = TextSoFar(self._decode)
        outputs: dict[str, np.ndarray] = {}
        for outputs in speculate(
            engine_inputs,
            target=lambda given: self._complete(self._engine, given),
            draft=lambda given: self._complete(self._draft, given),
            num_draft_tokens=_first(inputs, "num_draft_tokens"),
            use_draft_logits=bool(_first(inputs, "use_draft_logits")),
        ):
            if sender.is_cancelled():
                sender.send(pb_utils.InferenceResponse(error=_cancelled()), FINAL)
                return
            answer.add(outputs["output_ids"], outputs["sequence_length"])
            if streaming:
                sender.send(self._with_text(outputs, answer.all() if self._accumulate else answer.new()))
        if streaming:
            self._send_held_back({(0, 0): answer}, sender)
            sender.send(flags=FINAL)
        else:
            sender.send(self._with_text(outputs, answer.all()), FINAL)

    def _complete(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a request that is not streamed."""
        if not self._decoupled:
            return _outputs(_request(model, inputs).exec())
        found: dict[str, np.ndarray] = {}
        for response in _request(model, inputs).exec(decoupled=True):
            found = _outputs(response) or found
        return found

    def _preprocess(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {theirs: inputs[ours] for theirs, ours in self._to_preprocessing.items() if ours in inputs}
        made = _outputs(_request("preprocessing", given).exec())
        result = {theirs: made[ours] for theirs, ours in self._from_preprocessing.items() if ours in made}
        return result | {
            theirs: inputs[ours] for theirs, ours in self._straight_to_engine.items() if ours in inputs
        }

    def _response(self, outputs: dict[str, np.ndarray]) -> object:
        """The engine's response with its text, or else the text of its tokens."""
        text = outputs.get("text_output")
        if text is None or self._accumulate:
            text = self._decode(outputs["output_ids"], outputs["sequence_length"])
        return self._with_text(outputs, text)

    def _with_text(self, outputs: dict[str, np.ndarray], text: np.ndarray) -> object:
        passed = {name: outputs[name] for name in self._extra_outputs if name in outputs}
        tensors = {"text_output": text} | passed
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])

    def _decode(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[batch, beams, length] tokens as [batch, beams] texts."""
        given = {"TOKENS_BATCH": tokens, "SEQUENCE_LENGTH": lengths}
        return _outputs(_request("postprocessing", given).exec())["OUTPUT"]

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


def _cancelled() -> object:
    return pb_utils.TritonError("the client cancelled the request", pb_utils.TritonError.CANCELLED)


def _expected_finishes(engine_inputs: dict[str, np.ndarray], streaming: bool) -> int:
    """How many responses say that a sequence is finished: one a sequence, or one for all."""
    returns = _first(engine_inputs, "num_return_sequences") or 1
    return len(engine_inputs["input_ids"]) * returns if streaming else 1


def _first(outputs: dict[str, np.ndarray], name: str) -> int:
    return int(outputs[name].flat[0]) if name in outputs else 0
