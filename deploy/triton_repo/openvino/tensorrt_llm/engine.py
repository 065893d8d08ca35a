"""The engine process: continuous batching with OpenVINO GenAI, between one socket and one loop.

`ContinuousBatchingPipeline.step()` holds the interpreter lock, so it lives in a process of its own;
the Triton model talks to it through the inherited socket whose descriptor is the only argument. The
loop drains commands, admits, makes one step, reads every sequence, and sends ONE report. When the
other side closes the socket (or dies), the process ends.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

# ruff: noqa: E402 -- telemetry must be off before openvino is imported: it would phone home
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import numpy as np
import openvino
import openvino_genai
from admission import Admission
from detokenize import Detokenizer, TextStream
from guided import structured_output
from messages import Add, Chunk, EngineSettings, Failed, Ready, Report, Sequence, Stop
from pacing import smoothed, tokens_per_response
from stopping import Piece, StopMatcher, StopWord
from tokenizers import Tokenizer

_JUST_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


@dataclass
class Running:
    """A sequence in the batch: its handle in the pipeline, its text, and what was not sent yet."""

    key: int
    sequence: Sequence
    handle: openvino_genai.GenerationHandle
    text: TextStream
    stops: StopMatcher | None
    unsent: Chunk
    tokens: int  # prompt and generated, as the cache counts them
    met_end: bool = False  # an end id was generated
    sent_any: bool = False
    first_token_ns: int = 0
    drafted: int = 0
    accepted: int = 0


class Engine:
    """One pipeline, the queue before it, and the sequences in it."""

    def __init__(self, connection: Connection, settings: EngineSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._detokenizer = Detokenizer(
            Tokenizer.from_file(settings.tokenizer_file), settings.skip_special_tokens
        )
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            settings.engine_dir, _scheduler_config(settings), "CPU", _properties(settings)
        )
        self._admission: Admission[Add] = Admission(
            settings.max_sequences, settings.cache_blocks, settings.guarantee, settings.static
        )
        self._running: dict[int, Running] = {}
        # Ended early: the pipeline frees their cache in the next step, and only then is there room.
        self._leaving: list[int] = []
        self._parting: list[Chunk] = []  # their last chunks, to be sent
        self._cores = len(os.sched_getaffinity(0))
        self._step_s = 0.0  # of the latest steps, on average

    def run(self) -> None:
        """Serve until the other side hangs up."""
        while self._take_commands():
            report = Report()
            report.chunks, self._parting = self._parting, []
            self._start_admitted(report)
            if self._running or self._leaving:
                leaving, self._leaving = self._leaving, []
                self._step()
                for key in leaving:
                    self._admission.leave(key)
                self._read_all(report)
            if report.started or report.chunks:
                self._send(report)

    def _step(self) -> None:
        began = time.monotonic()
        self._pipeline.step()
        self._step_s = smoothed(self._step_s, time.monotonic() - began)

    def _take_commands(self) -> bool:
        """Obey what has arrived; wait for something when there is nothing to do. False: hung up."""
        idle = not (self._running or self._leaving or self._admission.waiting)
        try:
            while self._connection.poll(None if idle else 0):
                self._obey(self._connection.recv())
                idle = False
        except (EOFError, ConnectionError):
            return False
        return True

    def _obey(self, command: Add | Stop) -> None:
        if isinstance(command, Add):
            sequence = command.sequence
            # Guesses lie in the cache until they are judged.
            longest = sequence.max_tokens + self._settings.max_draft_len
            self._admission.join(command.key, len(sequence.prompt), longest, command)
            return
        running = self._running.get(command.key)
        if running is not None:
            self._abandon(running)
            chunk = _finished(running, "cancelled")
        elif self._admission.leave(command.key) is not None:
            chunk = Chunk(command.key, [], [], "", finish="cancelled")
        else:
            return  # it has ended by itself
        if command.report:
            self._parting.append(chunk)

    def _abandon(self, running: Running) -> None:
        running.handle.cancel()
        del self._running[running.key]
        self._leaving.append(running.key)

    def _start_admitted(self, report: Report) -> None:
        admitted = self._admission.admit()
        for command in admitted:
            try:
                self._start(command.key, command.sequence)
            except RuntimeError as error:  # GenAI refused the parameters: this sequence alone fails
                self._admission.leave(command.key)
                report.chunks.append(Chunk(command.key, [], [], "", error=str(error)))
            else:
                report.started.append(command.key)
        if admitted:  # tell at once: the step may be long
            self._send(report)
            report.started, report.chunks = [], []

    def _start(self, key: int, sequence: Sequence) -> None:
        prompt = openvino.Tensor(np.asarray([sequence.prompt], dtype=np.int64))
        generation = _generation_config(sequence, self._settings)
        handle = self._pipeline.add_request(key, prompt, generation)
        words = [StopWord(word, self._detokenizer.decode(list(word))) for word in sequence.stop_words]
        echo = self._detokenizer.decode(sequence.prompt) if sequence.echo_text else ""
        self._running[key] = Running(
            key=key,
            sequence=sequence,
            handle=handle,
            text=self._detokenizer.stream(sequence.prompt),
            stops=StopMatcher(words) if words else None,
            unsent=Chunk(key, [], [], echo),
            tokens=len(sequence.prompt),
        )

    def _read_all(self, report: Report) -> None:
        wanted = self._stream_interval()
        # Whoever waits for a first token waits for nobody else's response.
        for running in sorted(self._running.values(), key=lambda running: running.sent_any):
            chunk = self._read(running, wanted)
            if chunk is not None:
                report.chunks.append(chunk)

    def _read(self, running: Running, wanted: int) -> Chunk | None:
        """Take what the pipeline has for a sequence; a chunk when it ends, or `wanted` tokens are there."""
        while running.handle.can_read():
            for output in running.handle.read().values():
                self._count_guesses(running, len(output.generated_ids))
                if self._take_tokens(running, output.generated_ids, output.generated_log_probs):
                    self._abandon(running)
                    return _finished(running, "stop")
        status = running.handle.get_status()
        if status != openvino_genai.GenerationStatus.RUNNING:
            return self._end(running, status)
        self._admission.grow(running.key, running.tokens)
        return _due(running, wanted)

    def _count_guesses(self, running: Running, new: int) -> None:
        """Count what a step's tokens say of its guesses: all but one were guessed, and held."""
        length, sequence = self._settings.max_draft_len, running.sequence
        if not length or not running.first_token_ns:
            return  # the first token comes with the prompt
        running.accepted += new - 1
        # GenAI does not say how many it guesses: a draft as many as may be, while there is room for them.
        left = sequence.max_tokens - (running.tokens - len(sequence.prompt))
        if self._settings.draft_dir and left > length:
            running.drafted += length

    def _take_tokens(self, running: Running, tokens: list[int], log_probs: list[float]) -> bool:
        """Turn tokens into text and stop at a stop word; returns whether one was met."""
        running.tokens += len(tokens)
        running.first_token_ns = running.first_token_ns or time.monotonic_ns()
        for token, log_prob in zip(tokens, log_probs, strict=True):
            if token in running.sequence.end_ids:
                running.met_end = True  # never part of the output; the pipeline stops by itself
                continue
            new_text = running.text.push(token)
            if running.stops is None:
                _append(running.unsent, token, log_prob, new_text)
                continue
            pieces, text, stopped = running.stops.push(Piece(token, log_prob, new_text))
            _append_all(running.unsent, pieces)
            running.unsent.text += text
            if stopped:
                return True
        return False

    def _end(self, running: Running, status: openvino_genai.GenerationStatus) -> Chunk:
        del self._running[running.key]
        self._admission.leave(running.key)
        chunk = running.unsent
        if status != openvino_genai.GenerationStatus.FINISHED:
            chunk.error = "the KV cache ran full and the engine dropped the sequence"
            return chunk
        if running.stops is not None:
            _append_all(chunk, running.stops.finish())
        chunk.text += running.text.finish()
        return _finished(running, "stop" if running.met_end else "length")

    def _stream_interval(self) -> int:
        """Tokens of a streamed response: as the settings say, or what its cost allows."""
        if self._settings.stream_interval:
            return self._settings.stream_interval
        streams = sum(running.sequence.streaming for running in self._running.values())
        return tokens_per_response(streams, self._step_s, self._cores)

    def _send(self, report: Report) -> None:
        report.time_ns = time.monotonic_ns()
        report.waiting = self._admission.waiting
        report.active = self._admission.active
        report.reserved_blocks = self._admission.reserved_blocks
        usage = self._pipeline.get_metrics().cache_usage  # percent
        report.used_blocks = round(usage / 100 * self._settings.cache_blocks)
        self._connection.send(report)


def _due(running: Running, wanted: int) -> Chunk | None:
    """The unsent chunk of a streaming sequence: the first token at once, later `wanted` tokens."""
    chunk = running.unsent
    if not running.sequence.streaming or len(chunk.tokens) < (wanted if running.sent_any else 1):
        return None
    running.sent_any = True
    running.unsent = Chunk(running.key, [], [], "")
    return chunk


def _finished(running: Running, reason: str) -> Chunk:
    running.unsent.finish = reason
    running.unsent.first_token_ns = running.first_token_ns
    running.unsent.drafted = running.drafted
    running.unsent.accepted = running.accepted
    return running.unsent


def _append(chunk: Chunk, token: int, log_prob: float, text: str) -> None:
    chunk.tokens.append(token)
    chunk.log_probs.append(log_prob)
    chunk.text += text


def _append_all(chunk: Chunk, pieces: list[Piece]) -> None:
    for piece in pieces:
        _append(chunk, piece.token, piece.log_prob, piece.text)


def _scheduler_config(settings: EngineSettings) -> openvino_genai.SchedulerConfig:
    config = openvino_genai.SchedulerConfig()
    config.num_kv_blocks = settings.cache_blocks
    config.max_num_batched_tokens = settings.max_num_tokens
    config.max_num_seqs = settings.max_sequences
    config.dynamic_split_fuse = settings.chunked_context
    config.enable_prefix_caching = settings.reuse_cache
    return config


def _properties(settings: EngineSettings) -> dict[str, object]:
    properties: dict[str, object] = dict(settings.properties)
    if settings.draft_dir:
        # A cache of as many blocks: a draft's are smaller. Left to itself GenAI divides one cache.
        properties["draft_model"] = openvino_genai.draft_model(
            settings.draft_dir, "CPU", scheduler_config=_scheduler_config(settings), **settings.properties
        )
    elif settings.max_draft_len:
        properties["prompt_lookup"] = True
    return properties


def _generation_config(sequence: Sequence, settings: EngineSettings) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    if settings.max_draft_len:
        config.num_assistant_tokens = settings.max_draft_len
        config.max_ngram_size = settings.max_matching_ngram_size
    config.max_new_tokens = sequence.max_tokens
    config.min_new_tokens = sequence.min_tokens
    if sequence.end_ids:
        config.set_eos_token_id(sequence.end_ids[0])
        config.stop_token_ids = set(sequence.end_ids)
    else:
        config.ignore_eos = True
    config.repetition_penalty = sequence.repetition_penalty
    config.presence_penalty = sequence.presence_penalty
    config.frequency_penalty = sequence.frequency_penalty
    config.logprobs = int(sequence.log_probs)
    if sequence.guide is not None:
        config.structured_output_config = structured_output(sequence.guide.kind, sequence.guide.text)
    config.do_sample = sequence.sample
    if sequence.sample:
        config.temperature = sequence.temperature
        config.top_p = sequence.top_p
        config.rng_seed = sequence.seed
        if sequence.top_k:
            config.top_k = sequence.top_k
            # With top_p at 1 GenAI leaves the k likeliest in whatever order its partition ends in, and the
            # last bit of one logit (which depends on who shares the step) changes that order, and with it
            # what a seed draws. Below 1 it sorts them.
            config.top_p = min(config.top_p, _JUST_BELOW_ONE)
    return config


def main() -> None:
    """Load what the first message says, then serve."""
    connection = Connection(int(sys.argv[1]))
    try:
        settings: EngineSettings = connection.recv()
        try:
            engine = Engine(connection, settings)
            connection.send(Ready())
            engine.run()
        except Exception as error:  # whatever it was, the other side must learn the reason
            connection.send(Failed(f"{type(error).__name__}: {error}"))
            sys.exit(1)
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the other side is gone


if __name__ == "__main__":
    main()
