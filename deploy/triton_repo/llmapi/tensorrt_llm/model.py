"""`tensorrt_llm` over TensorRT-LLM's LLM API (PyTorch): the tensors of `inflight_batcher_llm`, text included.

Written from the published interface of tensorrt_llm 1.0 to 1.2: `LLM(**arguments)`, `generate_async`, and the
outputs it iterates over. It has NOT been run on tensorrt_llm: no machine that tests this project has it. The
tests run it in a real Triton with a stand-in for that package.

`model.yaml` beside this file holds the arguments of `LLM`, but for `triton_config`, which repeats what
config.pbtxt says, as in the template that NVIDIA ships. A `model:` that is a directory of the repository is
found wherever the repository is.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # before site-packages: our neighbours have plain names

import numpy as np
import triton_python_backend_utils as pb_utils
import yaml
from request import Defaults, InvalidRequestError, ParsedRequest, is_stop_request, parse_request

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@dataclass(eq=False)
class Job:
    """A request under way: where answers go, and what the API runs for it."""

    sender: Any
    request_id: str
    request: ParsedRequest
    results: list[Any] = field(default_factory=list)  # one a prompt
    stopped: bool = False  # by a stop request: it ends with what it has
    cancelled: bool = False  # its client went away


class TritonPythonModel:
    """The model as Triton's Python backend loads it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model of `model.yaml`, on its GPUs."""
        config = json.loads(args["model_config"])
        values = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        repository = Path(args["model_repository"]).parent
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._period_s = int(values["cancellation_check_period_ms"]) / 1000
        queue_size = int(values["max_queue_size"])
        self._most = config["max_batch_size"] + queue_size if queue_size else None
        self._defaults = Defaults(
            vocab_size=int(values["vocab_size"]),
            end_ids=tuple(int(token) for token in values["end_id"].split(",") if token),
            pad_id=int(values["pad_id"]),
            exclude_input_in_output=values["exclude_input_in_output"] == "true",
        )
        arguments = yaml.safe_load(Path(__file__).with_name("model.yaml").read_text(encoding="utf-8"))
        arguments.pop("triton_config", None)
        if (repository / arguments["model"]).is_dir():
            arguments["model"] = str(repository / arguments["model"])
        _forget_own_job()
        found = importlib.util.find_spec("tensorrt_llm")
        if found is None or found.origin is None:  # this model's own directory is no package
            raise pb_utils.TritonModelException("the package tensorrt_llm is not installed here")
        import tensorrt_llm

        self._api = tensorrt_llm
        self._llm = tensorrt_llm.LLM(**arguments)
        self._jobs: set[Job] = set()  # of the loop's thread
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._thread.start()
        self._watch = asyncio.run_coroutine_threadsafe(self._watch_clients(), self._loop)

    def execute(self, requests: list) -> None:
        """Hand each request to the loop, which answers it."""
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            work = self._take(tensors, request.request_id(), request.get_response_sender())
            asyncio.run_coroutine_threadsafe(work, self._loop)

    def finalize(self) -> None:
        """Triton calls this when no request is under way."""
        self._watch.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._llm.shutdown()

    async def _take(self, tensors: dict[str, np.ndarray], request_id: str, sender: Any) -> None:
        try:
            if is_stop_request(tensors):
                self._stop(request_id)
                sender.send(*((None, FINAL) if self._decoupled else (pb_utils.InferenceResponse([]), FINAL)))
                return
            request = parse_request(tensors, self._defaults, self._llm.tokenizer.decode)
            if request.streaming and not self._decoupled:
                raise InvalidRequestError("streaming is true, but this model was built without streaming")
        except InvalidRequestError as problem:
            _send_error(sender, str(problem), pb_utils.TritonError.INVALID_ARG)
            return
        if self._most is not None and len(self._jobs) >= self._most:
            _send_error(sender, "the queue is full", pb_utils.TritonError.UNAVAILABLE)
            return
        job = Job(sender, request_id, request)
        self._jobs.add(job)
        try:
            await self._answer(job)
        except Exception as error:  # whatever the API raises is the request's answer
            job.cancelled = True  # rows that still run send nothing more
            for result in job.results:
                result.abort()
            refused = isinstance(error, ValueError)
            code = pb_utils.TritonError.INVALID_ARG if refused else pb_utils.TritonError.INTERNAL
            _send_error(sender, str(error) or repr(error), code)
        finally:
            self._jobs.discard(job)

    async def _answer(self, job: Job) -> None:
        request = job.request
        for prompt in request.prompts:
            job.results.append(
                self._llm.generate_async(
                    {"prompt_token_ids": prompt.tokens},
                    sampling_params=self._sampling_params(prompt.sampling),
                    streaming=request.streaming,
                )
            )
        await asyncio.gather(*(self._follow(job, row) for row in range(len(job.results))))
        if job.cancelled:
            code = pb_utils.TritonError.CANCELLED
            _send_error(job.sender, "the client cancelled the request", code)
        elif request.streaming:
            job.sender.send(flags=FINAL)
        else:
            job.sender.send(_response(self._whole(job)), FINAL)

    async def _follow(self, job: Job, row: int) -> None:
        """Wait for the sequences of one prompt; send what is new of them if the request streams."""
        told_tokens, told_text = [0] * job.request.returns, [0] * job.request.returns
        ended: set[int] = set()
        async for result in job.results[row]:
            if not job.request.streaming or job.cancelled:
                continue
            for output in result.outputs:
                index = output.index
                new, text = output.token_ids[told_tokens[index] :], output.text[told_text[index] :]
                finish = None if index in ended else _finish(job, output)
                if not new and not text and finish is None:
                    continue
                told_tokens[index] += len(new)
                told_text[index] += len(text)
                if finish is not None:
                    ended.add(index)
                job.sender.send(_response(self._piece(job, row, output, new, text, finish)))

    def _piece(
        self, job: Job, row: int, output: Any, new: list[int], text: str, finish: str | None
    ) -> dict[str, np.ndarray]:
        """One streamed response, shapes [1, 1, ...]."""
        request = job.request
        tensors = {
            "text_output": np.array([[text.encode()]], dtype=object),
            "output_ids": np.array([[new]], dtype=np.int32).reshape(1, 1, -1),
            "sequence_length": np.array([[len(new)]], dtype=np.int32),
        }
        if len(request.prompts) * request.returns > 1:
            tensors["batch_index"] = np.array([[row]], dtype=np.int32)
            tensors["sequence_index"] = np.array([[output.index]], dtype=np.int32)
        if request.log_probs:
            log_probs = _log_probs(output)[len(output.token_ids) - len(new) :]
            tensors["output_log_probs"] = np.array([[log_probs]], dtype=np.float32).reshape(1, 1, -1)
        if finish is not None:
            tensors["finish_reason"] = np.array([[finish.encode()]], dtype=object)
            if request.num_input_tokens:
                tensors["num_input_tokens"] = np.array([[len(request.prompts[row].tokens)]], np.int32)
            if request.num_output_tokens:
                tensors["num_output_tokens"] = np.array([[len(output.token_ids)]], np.int32)
        return tensors

    def _whole(self, job: Job) -> dict[str, np.ndarray]:
        """The one response of a request that does not stream, shapes [batch, returns, ...]."""
        request = job.request
        shape = (len(request.prompts), request.returns)
        outputs = [output for result in job.results for output in result.outputs]
        prompts = [prompt.tokens for prompt in request.prompts for _ in range(request.returns)]
        ids, texts = [output.token_ids for output in outputs], [output.text for output in outputs]
        if not request.exclude_input:
            ids = [prompt + new for prompt, new in zip(prompts, ids, strict=True)]
            decode = self._llm.tokenizer.decode
            texts = [decode(prompt) + text for prompt, text in zip(prompts, texts, strict=True)]
        tensors = {
            "text_output": np.array([text.encode() for text in texts], dtype=object).reshape(shape),
            "output_ids": _padded(ids, request.pad_id, np.int32).reshape(*shape, -1),
            "sequence_length": np.array([len(row) for row in ids], dtype=np.int32).reshape(shape),
            "finish_reason": np.array(
                [(_finish(job, output) or "").encode() for output in outputs], dtype=object
            ).reshape(shape),
        }
        if request.log_probs:
            log_probs = [_log_probs(output) for output in outputs]
            tensors["output_log_probs"] = _padded(log_probs, 0.0, np.float32).reshape(*shape, -1)
            tensors["cum_log_probs"] = np.array([sum(row) for row in log_probs], np.float32).reshape(shape)
        if request.num_input_tokens:
            lengths = [len(prompt.tokens) for prompt in request.prompts]
            tensors["num_input_tokens"] = np.array(lengths, dtype=np.int32)[:, None]
        if request.num_output_tokens:
            counts = np.array([len(output.token_ids) for output in outputs], dtype=np.int32)
            tensors["num_output_tokens"] = counts.reshape(shape).sum(axis=1, keepdims=True, dtype=np.int32)
        return tensors

    def _sampling_params(self, sampling: dict[str, Any]) -> Any:
        sampling = dict(sampling)
        if "guided_decoding" in sampling:
            from tensorrt_llm.llmapi import GuidedDecodingParams

            sampling["guided_decoding"] = GuidedDecodingParams(**sampling["guided_decoding"])
        if "embedding_bias" in sampling:
            import torch

            sampling["embedding_bias"] = torch.from_numpy(np.array(sampling["embedding_bias"], np.float32))
        return self._api.SamplingParams(**sampling)

    def _stop(self, request_id: str) -> None:
        """Have a request end with what it has, as if it had come to its end."""
        for job in self._jobs:
            if request_id and job.request_id == request_id:
                job.stopped = True
                for result in job.results:
                    result.abort()

    async def _watch_clients(self) -> None:
        """End the requests whose clients have gone away."""
        while True:
            await asyncio.sleep(self._period_s)
            for job in self._jobs:
                if not job.cancelled and job.sender.is_cancelled():
                    job.cancelled = True
                    for result in job.results:
                        result.abort()


def _forget_own_job() -> None:
    """Drop what mpirun or srun told this process of its own job: the API starts one of its own."""
    for name in list(os.environ):
        settings = "_MCA_" in name and not name.startswith("OMPI_MCA_orte_")
        if name.startswith(("OMPI_", "ORTE_", "PMIX_", "PMI_")) and not settings:
            del os.environ[name]


def _finish(job: Job, output: Any) -> str | None:
    """Why a sequence ended; None while it goes on."""
    return "cancelled" if output.finish_reason is None and job.stopped else output.finish_reason


def _log_probs(output: Any) -> list[float]:
    """The log probability of each token; the API gives a mapping by token at each place, or a number."""
    found = []
    for token, entry in zip(output.token_ids, output.logprobs or [], strict=False):
        chosen = entry.get(token) if isinstance(entry, dict) else entry
        found.append(float("nan") if chosen is None else float(getattr(chosen, "logprob", chosen)))
    return found


def _padded(rows: list[list], fill: float, dtype: type) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def _response(tensors: dict[str, np.ndarray]) -> object:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])


def _send_error(sender: Any, message: str, code: int) -> None:
    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)), FINAL)
