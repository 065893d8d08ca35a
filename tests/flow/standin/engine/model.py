"""A stand-in for Triton's C++ backend `tensorrtllm`, as the models around it see it. No model of language.

The next token is a fixed function of the last two, so what it must answer is known. `skew` makes it guess
wrong at every skew-th token: a draft model. Draft tokens are accepted as far as they are right; a token more
follows.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def next_token(tokens, vocab_size, skew):
    before = tokens[-2] if len(tokens) > 1 else 1
    token = (tokens[-1] * 31 + before * 17 + 11) % vocab_size
    return (token + 1) % vocab_size if skew and len(tokens) % skew == 0 else token


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        values = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        self.vocab_size, self.skew = int(values["vocab_size"]), int(values["skew"])
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.exclude_input = values["exclude_input_in_output"] == "true"

    def execute(self, requests):
        responses = []
        for request in requests:
            try:
                answers = list(self.answer(request))
            except Exception as error:
                answers = [pb_utils.InferenceResponse(error=pb_utils.TritonError(repr(error)))]
            if self.decoupled:
                sender = request.get_response_sender()
                for answer in answers:
                    sender.send(answer)
                sender.send(flags=FINAL)
            else:
                responses += answers
        return None if self.decoupled else responses

    def answer(self, request):
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        prompt = given["input_ids"][0][: int(given["input_lengths"].flat[0])].tolist()
        wanted = int(given["request_output_len"].flat[0])
        draft = given["draft_input_ids"][0].tolist() if "draft_input_ids" in given else []
        if draft and wanted != len(draft) + 1:
            raise ValueError(f"{len(draft)} draft tokens and request_output_len {wanted}")
        stops = [] if "stop_words_list" not in given else self.words(given["stop_words_list"][0])
        stops.append([int(given["end_id"].flat[0])])  # without one a generation never ends
        if int(given["pad_id"].flat[0]) < 0:
            raise ValueError("no pad_id")
        new, accepted = [], 0
        while len(new) < wanted:
            token = next_token(prompt + new, self.vocab_size, self.skew)
            if [token] == stops[-1]:
                break
            new.append(token)
            if len(new) <= len(draft) and draft[len(new) - 1] == token:
                accepted += 1
            elif draft:
                break
            if any((prompt + new)[-len(word) :] == word for word in stops):
                break
        excluded = (
            bool(given["exclude_input_in_output"].flat[0]) if "exclude_input_in_output" in given else None
        )
        told = prompt if not (self.exclude_input if excluded is None else excluded) else []
        streaming = "streaming" in given and bool(given["streaming"].flat[0])
        pieces = [[token] for token in new] if streaming else [told + new]
        for piece in pieces:
            yield pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor("output_ids", np.array([[piece]], dtype=np.int32)),
                    pb_utils.Tensor("sequence_length", np.array([[len(piece)]], dtype=np.int32)),
                    pb_utils.Tensor("total_accepted_draft_tokens", np.array([[accepted]], dtype=np.int32)),
                ]
            )

    @staticmethod
    def words(packed):
        tokens, ends = packed.tolist()
        ends = [end for end in ends if end > 0]
        return [tokens[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
