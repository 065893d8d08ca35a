"""`tensorrt_llm` on a CPU: Triton's Python backend in front of an engine process.

`execute` validates requests, hands their sequences to the engine, and returns at once; requests join
and leave the engine's batch between steps. One thread turns the engine's reports into responses. When
it falls behind, the reports that have piled up are merged, and a client gets several tokens in one
response instead of a growing delay.

    execute (Triton's thread) --Add/Stop--> engine process --Report--> responder thread --> clients

Tensors: those of TensorRT-LLM's `inflight_batcher_llm`, plus the outputs `text_output` (detokenized
here, so that streaming needs no second Python model) and `finish_reason` (stop, length).
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # before site-packages: our neighbours have plain names

import triton_python_backend_utils as pb_utils
from admission import blocks_for
from engine_process import EngineDiedError, EngineProcess
from guide_process import GuideProcess
from messages import Add, Chunk, EngineSettings, Report, Stop
from metrics import Metrics
from request import Defaults, InvalidRequestError, Limits, ParsedRequest, is_stop_request, parse_request
from responses import Answer, Times, merge

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
RESTARTS = 3  # of an engine that dies within
HEALTHY_S = 60.0  # of its start; one that lasted longer may be restarted for ever


@dataclass
class Job:
    """A request under way. Only the responder thread sends for it or asks whether it was cancelled."""

    sender: object
    request_id: str
    answer: Answer
    keys: list[int]
    finished: dict[int, Chunk] = field(default_factory=dict)  # index of the sequence -> all of it

    @property
    def request(self) -> ParsedRequest:
        """What was asked."""
        return self.answer.request


class TritonPythonModel:
    """The model as Triton's Python backend loads it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read config.pbtxt's parameters and load the engine; raises with the reason if it cannot."""
        config = json.loads(args["model_config"])
        parameters = _Parameters(config, Path(args["model_repository"]).parent)
        self._settings = parameters.engine_settings()
        self._limits = parameters.limits(self._settings)
        self._defaults = parameters.defaults()
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._max_queue_size = parameters.integer("max_queue_size", 0)
        self._cancel_period = parameters.integer("cancellation_check_period_ms", 100) / 1000

        self._metrics = Metrics(
            args["model_name"],
            args["model_version"],
            self._limits.max_sequences,
            self._limits.cache_blocks,
        )

        self._lock = threading.Lock()  # of everything below
        self._owners: dict[int, tuple[Job, int]] = {}  # sequence key -> its job and index therein
        self._unstarted: set[int] = set()
        self._waiting = 0  # in the engine's queue, by its latest report
        self._down: str | None = None  # why there is no engine now
        self._next_key = 0
        self._stop_ids: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopping: set[int] = set()  # keys of sequences that were to stop before the engine had them
        self._refused: queue.SimpleQueue[tuple[Job, str]] = queue.SimpleQueue()  # for their guides
        self._guided: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # whose guides are to be checked
        self._checker: threading.Thread | None = None
        if self._limits.guides:
            process = GuideProcess(Path(self._settings.engine_dir) / "guide")
            self._checker = threading.Thread(
                target=self._check_guides, args=(process,), name="guides", daemon=True
            )
            self._checker.start()
        self._closing = False
        self._engine = EngineProcess(self._settings)
        try:
            self._engine.wait_ready()
        except EngineDiedError as death:
            raise pb_utils.TritonModelException(f"the engine cannot load: {death}") from None
        self._responder = threading.Thread(target=self._respond, name="responder", daemon=True)
        self._responder.start()

    def execute(self, requests: list) -> None:
        """Take requests in; the responder answers them. A bad one is refused here, alone."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._take(request, sender)
            except InvalidRequestError as problem:
                self._metrics.ended("refused")
                _send_error(sender, str(problem), pb_utils.TritonError.INVALID_ARG)
            except _UnavailableError as problem:
                self._metrics.ended("refused")
                _send_error(sender, str(problem), pb_utils.TritonError.UNAVAILABLE)

    def finalize(self) -> None:
        """End the engine. Triton calls this when no request is under way."""
        self._closing = True
        if self._checker is not None:
            self._guided.put(None)
            self._checker.join()
        self._engine.close()
        self._responder.join()

    def _take(self, request: object, sender: object) -> None:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if is_stop_request(tensors):
            self._stop_ids.put(request.request_id())
            sender.send(*((None, FINAL) if self._decoupled else (pb_utils.InferenceResponse([]), FINAL)))
            return
        parsed = parse_request(tensors, self._limits, self._defaults)
        if parsed.streaming and not self._decoupled:
            raise InvalidRequestError("streaming is true, but this model was built without streaming")
        answer = Answer(
            parsed, frozenset(request.requested_output_names()), Times(arrival=time.monotonic_ns())
        )
        with self._lock:
            self._check_room()
            keys = range(self._next_key, self._next_key + len(parsed.sequences))
            self._next_key = keys.stop
            job = Job(sender, request.request_id(), answer, list(keys))
            self._owners |= {key: (job, index) for index, key in enumerate(keys)}
            self._unstarted.update(keys)
            if any(sequence.guide for sequence in parsed.sequences):
                self._guided.put(job)
            else:
                self._submit(job)

    def _submit(self, job: Job) -> None:
        """Hand a job's sequences to the engine. Hold the lock: nobody may end the job meanwhile."""
        for key, sequence in zip(job.keys, job.request.sequences, strict=True):
            if key in self._owners:
                self._engine.send(Add(key, sequence))
                if key in self._stopping:
                    self._engine.send(Stop(key, report=True))

    def _check_guides(self, process: GuideProcess) -> None:
        """The thread that has guides checked, one after the other; what passes goes to the engine."""
        while (job := self._guided.get()) is not None:
            guides = {sequence.guide for sequence in job.request.sequences if sequence.guide is not None}
            problems = filter(None, map(process.problem, guides))
            if (problem := next(problems, None)) is not None:
                self._refused.put((job, f"guided_decoding_guide cannot be followed: {problem}"))
                continue
            with self._lock:
                self._submit(job)
        process.close()

    def _check_room(self) -> None:
        if self._down is not None:
            raise _UnavailableError(self._down)
        if not self._max_queue_size:
            return
        # Sequences that the engine has not taken notice of yet may still find free seats.
        started = len(self._owners) - len(self._unstarted)
        free = 0 if self._waiting else max(0, self._limits.max_sequences - started)
        if len(self._unstarted) >= self._max_queue_size + free:
            raise _UnavailableError(f"the queue is full: {self._max_queue_size} sequence(s) are waiting")

    def _respond(self) -> None:
        """The responder thread: reports in, responses out, until the model is unloaded."""
        deaths, ready_at = 0, time.monotonic()
        while not self._closing:
            try:
                if self._down is not None:
                    self._revive()
                    ready_at = time.monotonic()
                self._serve()
            except EngineDiedError as death:
                if self._closing:
                    return
                deaths = 1 if time.monotonic() - ready_at > HEALTHY_S else deaths + 1
                self._bury(str(death))
                if deaths > RESTARTS:
                    self._down = f"the engine keeps failing: {death}; reload the model"
                    return

    def _serve(self) -> None:
        checked = time.monotonic()
        while True:
            reports = self._engine.reports(self._cancel_period if self._owners else None)
            self._deliver(reports)
            while not self._stop_ids.empty():
                self._stop_by_id(self._stop_ids.get())
            while not self._refused.empty():
                job, why = self._refused.get()
                if job.keys[0] in self._owners:  # not, if the request ended meanwhile
                    self._metrics.ended("refused", len(job.keys))
                    self._end(job, why, pb_utils.TritonError.INVALID_ARG)
            if time.monotonic() - checked >= self._cancel_period:
                for job in self._jobs():
                    if job.sender.is_cancelled():
                        self._cancel(job, "the client cancelled the request")
                checked = time.monotonic()

    def _deliver(self, reports: list[Report]) -> None:
        """Answer with everything that has piled up: at most one response a sequence."""
        chunks: dict[int, Chunk] = {}
        if reports:
            self._metrics.report(reports[-1])
        for report in reports:
            with self._lock:
                self._waiting = report.waiting
                self._unstarted.difference_update(report.started)
                owners = [self._owners[key] for key in report.started if key in self._owners]
            for job, _ in owners:
                times = job.answer.times
                times.first_scheduled = times.first_scheduled or report.time_ns
            for chunk in report.chunks:
                known = chunks.get(chunk.key)
                chunks[chunk.key] = chunk if known is None else merge(known, chunk)
        for key, chunk in chunks.items():
            if key in self._owners:  # not, if the request ended meanwhile
                self._deliver_chunk(*self._owners[key], chunk, reports[-1].time_ns)

    def _deliver_chunk(self, job: Job, index: int, chunk: Chunk, time_ns: int) -> None:
        if chunk.error is not None:
            self._metrics.ended("failed", len(job.keys))
            self._end(job, chunk.error, pb_utils.TritonError.INTERNAL)
            return
        if chunk.finish is not None:
            job.finished[index] = chunk
            self._metrics.finished(
                chunk,
                prompt=len(job.request.sequences[index].prompt),
                tokens=job.answer.counts[index] + len(chunk.tokens),
                arrival_ns=job.answer.times.arrival,
                scheduled_ns=job.answer.times.first_scheduled,
                time_ns=time_ns,
            )
        last = len(job.finished) == len(job.keys)
        if job.request.streaming:
            outputs = job.answer.piece(index, chunk, time_ns)
        elif last:
            outputs = job.answer.whole([job.finished[i] for i in range(len(job.keys))], time_ns)
        else:
            return
        if chunk.finish is not None:
            self._forget([job.keys[index]] if not last else job.keys)
        tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        job.sender.send(pb_utils.InferenceResponse(tensors), FINAL if last else 0)

    def _cancel(self, job: Job, why: str) -> None:
        self._metrics.ended("cancelled", len(job.keys))
        self._end(job, why, pb_utils.TritonError.CANCELLED)  # first: from now on nobody submits it
        for key in job.keys:
            self._engine.send(Stop(key, report=False))

    def _stop_by_id(self, request_id: str) -> None:
        """Have a request end with what it has, as if it had come to its end."""
        for job in self._jobs():
            if request_id and job.request_id == request_id:
                with self._lock:
                    self._stopping.update(job.keys)
                    for key in job.keys:
                        self._engine.send(Stop(key, report=True))

    def _end(self, job: Job, why: str, code: int) -> None:
        """Close a job with an error. Afterwards its sender must not be touched."""
        self._forget(job.keys)
        if self._decoupled:
            # A flag of its own for the end: Triton 2.51 keeps from scripts (BLS) errors after responses.
            _send_error(job.sender, why, code, 0)
            job.sender.send(flags=FINAL)
        else:
            _send_error(job.sender, why, code)

    def _forget(self, keys: list[int]) -> None:
        with self._lock:
            for key in keys:
                self._owners.pop(key, None)
                self._unstarted.discard(key)
                self._stopping.discard(key)

    def _jobs(self) -> list[Job]:
        with self._lock:
            return list({id(job): job for job, _ in self._owners.values()}.values())

    def _bury(self, cause: str) -> None:
        """The engine is dead: refuse new requests, end the old ones."""
        pb_utils.Logger.log_error(f"the engine died: {cause}")
        with self._lock:
            self._down = f"the engine died ({cause}) and is being restarted; try again"
        for job in self._jobs():
            self._metrics.ended("failed", len(job.keys))
            self._end(job, f"the engine died: {cause}", pb_utils.TritonError.INTERNAL)
        self._engine.close()

    def _revive(self) -> None:
        engine = EngineProcess(self._settings)
        self._engine = engine
        engine.wait_ready()
        with self._lock:
            self._waiting = 0
            self._down = None
        pb_utils.Logger.log_info("the engine is back")


class _UnavailableError(Exception):
    """The request is good, but cannot be taken now."""


class _Parameters:
    """The `parameters` of config.pbtxt, typed; upstream's keys and their defaults where it has one."""

    def __init__(self, config: dict, repository: Path) -> None:
        self._values = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        self._repository = repository
        self._max_batch_size = config["max_batch_size"]

    def text(self, key: str, default: str) -> str:
        return self._values.get(key) or default

    def integer(self, key: str, default: int) -> int:
        return int(self.text(key, str(default)))

    def flag(self, key: str, default: bool) -> bool:
        return self.text(key, str(default)).lower() in ("true", "1")

    def path(self, key: str) -> Path:
        """A path in the repository, wherever that is now."""
        return self._repository / self._values[key]

    def engine_settings(self) -> EngineSettings:
        policy = self.text("batch_scheduler_policy", "guaranteed_no_evict")
        return EngineSettings(
            engine_dir=str(self.path("gpt_model_path")),
            tokenizer_file=str(self.path("tokenizer_dir") / "tokenizer.json"),
            properties=json.loads(self.text("plugin_properties", "{}")),
            cache_blocks=blocks_for(self.integer("max_tokens_in_paged_kv_cache", 0)),
            max_sequences=self._max_batch_size,
            max_num_tokens=self.integer("max_num_tokens", 0),
            chunked_context=self.flag("enable_chunked_context", False),
            reuse_cache=self.flag("enable_kv_cache_reuse", False),
            guarantee=policy == "guaranteed_no_evict",
            static=self.text("gpt_model_type", "inflight_fused_batching") == "V1",
            stream_interval=self.integer("stream_interval", 0),
            skip_special_tokens=self.flag("skip_special_tokens", True),
            max_draft_len=self.integer("max_draft_len", 0),
            draft_dir=str(self.path("draft_model_path")) if self.text("draft_model_path", "") else "",
            max_matching_ngram_size=self.integer("max_matching_ngram_size", 0),
        )

    def limits(self, settings: EngineSettings) -> Limits:
        max_seq_len = self.integer("max_seq_len", 0)
        longest = max_seq_len - 1
        return Limits(
            vocab_size=self.integer("vocab_size", 0),
            max_seq_len=max_seq_len,
            max_prompt_len=longest if settings.chunked_context else min(longest, settings.max_num_tokens),
            cache_blocks=settings.cache_blocks,
            max_sequences=self._max_batch_size,
            guides=self.flag("enable_guided_decoding", False),
            max_draft_len=settings.max_draft_len,
        )

    def defaults(self) -> Defaults:
        end_ids = tuple(int(token) for token in self.text("end_id", "").split(",") if token)
        return Defaults(
            end_ids=end_ids,
            pad_id=self.integer("pad_id", end_ids[0] if end_ids else 0),
            exclude_input_in_output=self.flag("exclude_input_in_output", False),
        )


def _send_error(sender: object, message: str, code: int, flags: int = FINAL) -> None:
    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)), flags)
