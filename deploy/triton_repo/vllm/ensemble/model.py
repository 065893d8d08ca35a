"""`ensemble` in front of Triton's vLLM backend: the tensors of `inflight_batcher_llm`, scripted.

The backend takes one prompt a request, without a batch dimension, and its sampling parameters as JSON, which
no ensemble of Triton's could make. Written from what the backend of January 2026 declares and answers; tested
in a real Triton with a stand-in for the backend, not with vLLM.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

PASSED = {  # our input -> vLLM's SamplingParams
    "max_tokens": "max_tokens",
    "min_tokens": "min_tokens",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "num_return_sequences": "n",
}
WORDS = {"stop_words": "stop", "bad_words": "bad_words"}
# Inputs that cannot be passed on. An empty tensor, a false or a zero asks for nothing; `lora_task_id` asks by
# being there.
UNSUPPORTED = (
    "decoder_text_input",
    "length_penalty",
    "return_log_probs",
    "return_context_logits",
    "return_generation_logits",
    "return_perf_metrics",
    "prompt_embedding_table",
    "prompt_table_extra_id",
    "embedding_bias_words",
    "lora_weights",
    "lora_config",
    "guided_decoding_guide_type",
    "guided_decoding_guide",
)
WANTED = ("return_num_input_tokens", "return_num_output_tokens")


class InvalidRequestError(ValueError):
    """The request cannot be served; the message says which input and why."""


class TritonPythonModel:
    """The model as Triton's Python backend loads it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read which model to ask, and how many requests may be under way."""
        config = json.loads(args["model_config"])
        values = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        self._engine = values["vllm_model_name"]
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._exclude_input = values["exclude_input_in_output"] == "true"
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
        except InvalidRequestError as problem:
            error = pb_utils.TritonError(str(problem), pb_utils.TritonError.INVALID_ARG)
            sender.send(pb_utils.InferenceResponse(error=error), FINAL)
        except Exception as error:  # a thread that dies silently would leave its client waiting
            failure = pb_utils.TritonError(str(error) or repr(error))
            sender.send(pb_utils.InferenceResponse(error=failure), FINAL)

    def _answer(self, inputs: dict[str, np.ndarray], sender: object) -> None:
        stream = bool(first(inputs, "stream", False))
        if stream and not self._decoupled:
            raise InvalidRequestError("stream is true, but this model was built without streaming")
        asked = {
            "text_input": text_of(inputs),
            "stream": np.array([stream]),
            "sampling_parameters": np.array([json.dumps(sampling_parameters(inputs)).encode()], dtype=object),
            "exclude_input_in_output": np.array(
                [stream or bool(first(inputs, "exclude_input_in_output", self._exclude_input))]
            ),
            "return_finish_reason": np.array([True]),
        } | {name: np.array([bool(first(inputs, name, False))]) for name in WANTED}
        responses = pb_utils.InferenceRequest(
            model_name=self._engine,
            inputs=[pb_utils.Tensor(name, array) for name, array in asked.items()],
            requested_output_names=[],
        ).exec(decoupled=True)
        for response in responses:
            if response.has_error():
                sender.send(pb_utils.InferenceResponse(error=response.error()), FINAL)
                return
            outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            if outputs:
                tensors = answer(outputs, inputs)
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in tensors.items()]))
        sender.send(flags=FINAL)


def text_of(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The one prompt, [1]. Raises InvalidRequestError."""
    text = inputs["text_input"].reshape(-1)
    if len(text) != 1:
        raise InvalidRequestError(f"text_input has {len(text)} prompts: one a request is served")
    if not text[0]:
        raise InvalidRequestError("text_input is empty; send at least one character")
    return text


def sampling_parameters(inputs: dict[str, np.ndarray]) -> dict[str, object]:
    """vLLM's parameters, for what the request says. Raises InvalidRequestError."""
    if "lora_task_id" in inputs:
        raise InvalidRequestError("lora_task_id: LoRA adapters are not served here; leave it out")
    for name in UNSUPPORTED:
        tensor = inputs.get(name)
        if tensor is not None and tensor.size and any(tensor.reshape(-1).tolist()):
            raise InvalidRequestError(f"{name} is not served here; leave it out")
    if first(inputs, "beam_width", 1) != 1:
        raise InvalidRequestError("beam_width: beam search is not served here; use 1")
    if first(inputs, "max_tokens", 0) < 1:
        raise InvalidRequestError("max_tokens must be 1 or more")
    found = {theirs: first(inputs, ours, None) for ours, theirs in PASSED.items() if ours in inputs}
    found |= chosen_by(inputs)
    if "end_id" in inputs:
        end_id = first(inputs, "end_id", None)
        found |= {"ignore_eos": True} if end_id == -1 else {"stop_token_ids": [end_id]}
    for ours, theirs in WORDS.items():
        words = [
            word.decode("utf-8", "replace") for word in inputs.get(ours, np.empty(0)).reshape(-1) if word
        ]
        found |= {theirs: words} if words else {}
    return found


def chosen_by(inputs: dict[str, np.ndarray]) -> dict[str, object]:
    """As upstream: without top_k and top_p, and with top_k 1, the likeliest token is taken."""
    temperature = first(inputs, "temperature", 1.0)
    top_k, top_p = first(inputs, "top_k", 0), first(inputs, "top_p", 0.0)
    if temperature <= 0 or top_k == 1 or (top_k < 1 and top_p <= 0):
        return {"temperature": 0.0}
    return {"temperature": temperature, "top_k": top_k or -1, "top_p": top_p or 1.0}


def answer(outputs: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The backend's outputs under our names, [1, sequences]; of the reasons only those of ended sequences."""
    tensors = {"text_output": outputs["text_output"].reshape(1, -1)}
    reasons = outputs.get("finish_reason")
    if reasons is not None and any(reason != b"None" for reason in reasons.reshape(-1)):
        tensors["finish_reason"] = reasons.reshape(1, -1)
    for name in ("num_input_tokens", "num_output_tokens"):
        if name in outputs and first(inputs, f"return_{name}", False):
            tensors[name] = outputs[name].astype(np.int32).reshape(1, -1)[:, :1]
    return tensors


def first(inputs: dict[str, np.ndarray], name: str, default: object) -> object:
    """A request's one value, as Python's."""
    tensor = inputs.get(name)
    return default if tensor is None or not tensor.size else tensor.reshape(-1)[0].item()
