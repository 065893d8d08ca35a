"""A stand-in for the package tensorrt_llm: what our model.py calls of its LLM API. No model of language.

It writes what `LLM` was given to $STANDIN_LOG, refuses what the real one would refuse, and answers a prompt
with its own tokens over and over, each sequence of several beginning a token later.
"""

import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from tensorrt_llm.llmapi import GuidedDecodingParams


@dataclass
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: list | None = None
    bad_token_ids: list | None = None
    stop: list | None = None
    stop_token_ids: list | None = None
    embedding_bias: object = None
    n: int = 1
    top_k: int | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_decay: float | None = None
    top_p_reset_ids: int | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    guided_decoding: GuidedDecodingParams | None = None
    ignore_eos: bool = False

    def __post_init__(self):
        if self.n > 1 and self.top_k is None and self.top_p is None:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns.")


@dataclass
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    finish_reason: str | None = None


class RequestOutput:
    def __init__(self, tokenizer, tokens, params, streaming):
        self.outputs = [CompletionOutput(index) for index in range(params.n)]
        self._tokenizer, self._tokens, self._params, self._streaming = tokenizer, tokens, params, streaming
        self._aborted = False

    def abort(self):
        self._aborted = True

    async def __aiter__(self):
        for step in range(self._params.max_tokens):
            for output in self.outputs:
                if output.finish_reason is None:
                    self._grow(output, step)
                    if self._streaming:
                        yield self
            await asyncio.sleep(0.01)
            if all(output.finish_reason for output in self.outputs):
                break
        if not self._streaming:
            yield self

    def _grow(self, output, step):
        token = self._tokens[(step + output.index) % len(self._tokens)]
        ends = [self._params.end_id, *(self._params.stop_token_ids or [])]
        if self._aborted:
            output.finish_reason = "cancelled"
        elif token in ends and not self._params.ignore_eos:
            output.finish_reason = "stop"
        else:
            output.token_ids.append(token)
            output.logprobs.append({token: -0.5})
            output.text = self._tokenizer.decode(output.token_ids)
            for word in self._params.stop or []:
                if output.text.endswith(word):
                    output.text, output.finish_reason = output.text.removesuffix(word), "stop"
            if len(output.token_ids) == self._params.max_tokens:
                output.finish_reason = "length"


class LLM:
    def __init__(self, **arguments):
        with Path(os.environ["STANDIN_LOG"]).open("w") as log:
            json.dump({"arguments": arguments, "pmix": os.environ.get("PMIX_RANK")}, log)
        assert (Path(arguments["model"]) / "config.json").is_file()
        self.tokenizer = Tokenizer.from_file(str(Path(arguments["model"]) / "tokenizer.json"))

    def generate_async(self, inputs, sampling_params, streaming):
        if len(inputs["prompt_token_ids"]) + sampling_params.max_tokens > 1000:
            raise ValueError("the request is too long")
        return RequestOutput(self.tokenizer, inputs["prompt_token_ids"], sampling_params, streaming)

    def shutdown(self):
        pass
