"""A stand-in for Triton's vLLM backend, as its clients see it: it answers with what it was asked."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            sender = request.get_response_sender()
            if given["text_input"].shape != (1,):
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("not one prompt")), FINAL)
                continue
            asked = json.loads(given["sampling_parameters"][0])
            told = "" if given["exclude_input_in_output"][0] else given["text_input"][0].decode()
            text = json.dumps(asked, sort_keys=True)
            pieces = [text[:7], text[7:]] if given["stream"][0] else [told + text]
            for index, piece in enumerate(pieces):
                reason = "length" if index == len(pieces) - 1 else "None"
                tensors = {
                    "text_output": np.array([piece.encode()] * asked.get("n", 1), dtype=object),
                    "finish_reason": np.array([reason.encode()] * asked.get("n", 1), dtype=object),
                    "num_input_tokens": np.array(5, dtype=np.uint32),
                }
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in tensors.items()]))
            sender.send(flags=FINAL)
