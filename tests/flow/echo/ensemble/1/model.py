"""A model with the ensemble's tensors that needs no mathematics: it repeats the prompt `max_tokens` times.

Prompts that begin with a word of their own: "slow" takes 50 ms a token, "raise" fails at the third token,
"die" ends the process, "inputs" answers with what was sent.
"""

import os
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = ("stream", "exclude_input_in_output", "temperature", "seed", "stop_words")


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self._answer, args=(request, request.get_response_sender())).start()

    def _answer(self, request, sender):
        prompt = _read(request, "text_input")[0].decode()
        if prompt.startswith("die"):
            os._exit(1)
        if prompt.startswith("inputs"):
            sent = {name: _read(request, name) for name in INPUTS}
            prompt = repr({name: values.tolist() for name, values in sent.items() if values is not None})
        tokens = int(_read(request, "max_tokens")[0])
        sequences = int(_read(request, "num_return_sequences", [1])[0])
        if not _read(request, "stream", [False])[0]:
            sender.send(_response([prompt * tokens] * sequences, tokens * sequences, 0))
        else:
            for n in range(tokens):
                if sender.is_cancelled():
                    print(f"cancelled {request.request_id()}", flush=True)
                    break
                if prompt.startswith("raise") and n == 2:
                    error = pb_utils.TritonError("the third token is cursed")
                    sender.send(pb_utils.InferenceResponse(error=error))
                    break
                if prompt.startswith("slow"):
                    time.sleep(0.05)
                for sequence in range(sequences):
                    sender.send(_response([prompt], tokens if n == tokens - 1 else None, sequence))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _read(request, name, default=None):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)


def _response(texts, finished_tokens, sequence):
    strings = np.array([[text.encode() for text in texts]], dtype=object)
    tensors = [
        pb_utils.Tensor("text_output", strings),
        pb_utils.Tensor("sequence_index", np.array([[sequence]], dtype=np.int32)),
        pb_utils.Tensor("output_log_probs", np.full((1, len(texts), 1), -0.5, dtype=np.float32)),
    ]
    if finished_tokens is not None:
        tensors.append(pb_utils.Tensor("num_output_tokens", np.array([[finished_tokens]], dtype=np.int32)))
        tensors.append(pb_utils.Tensor("finish_reason", np.array([[b"length"]], dtype=object)))
    return pb_utils.InferenceResponse(tensors)
