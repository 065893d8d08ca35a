"""`postprocessing`: token ids to text, with the tensors of TensorRT-LLM's `inflight_batcher_llm`.

It decodes what it gets as a whole and remembers nothing: given the tokens of one streamed response, it
cannot know the character or the space that the previous one left open. So `tensorrt_llm_bls` gives
it all the tokens so far (with `accumulate_tokens`), and otherwise takes the text from the CPU flavour's
engine, as the ensemble does.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    """The model as Triton's Python backend loads it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer that the parameter `tokenizer_dir` names, relative to the repository."""
        parameters = json.loads(args["model_config"])["parameters"]
        values = {key: entry["string_value"] for key, entry in parameters.items()}
        repository = Path(args["model_repository"]).parent
        self._tokenizer = Tokenizer.from_file(str(repository / values["tokenizer_dir"] / "tokenizer.json"))
        self._skip_special_tokens = values["skip_special_tokens"].lower() in ("true", "1")

    def execute(self, requests: list) -> list:
        """Decode each request's [batch, beams, length] tokens to [batch, beams] texts."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: object) -> object:
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        if tokens.ndim != 3 or lengths.shape != tokens.shape[:2]:
            error = pb_utils.TritonError(
                f"TOKENS_BATCH has shape {list(tokens.shape)} and SEQUENCE_LENGTH {list(lengths.shape)}: "
                "[batch, beams, length] and [batch, beams] are expected",
                pb_utils.TritonError.INVALID_ARG,
            )
            return pb_utils.InferenceResponse(error=error)
        texts = np.empty(lengths.shape, dtype=object)
        for index in np.ndindex(lengths.shape):
            ids = tokens[index][: lengths[index]].tolist()
            text = self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
            texts[index] = text.encode()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", texts)])
