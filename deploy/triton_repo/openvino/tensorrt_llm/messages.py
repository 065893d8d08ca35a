"""What the model and its engine process say to each other. Pickled dataclasses over one socket pair."""

from __future__ import annotations

from dataclasses import dataclass, field

from guides import Guide


@dataclass(frozen=True)
class EngineSettings:
    """How to load the engine. Paths are absolute."""

    engine_dir: str
    tokenizer_file: str
    properties: dict[str, str]  # of OpenVINO's CPU plugin
    cache_blocks: int
    max_sequences: int
    max_num_tokens: int  # tokens in one step, prompts and generation together
    chunked_context: bool  # a prompt may be split over several steps
    reuse_cache: bool  # equal beginnings of prompts share cache blocks
    guarantee: bool  # batch_scheduler_policy guaranteed_no_evict
    static: bool  # gpt_model_type V1: nobody joins a batch that runs
    stream_interval: int  # tokens of a streamed response, after the first; 0: by load
    skip_special_tokens: bool
    max_draft_len: int = 0  # tokens guessed a step, for the model to check; 0: no speculative decoding
    draft_dir: str = ""  # the model that guesses; "": the sequence's own past does
    max_matching_ngram_size: int = 0  # of the past that is looked for


@dataclass(frozen=True)
class Sequence:
    """One sequence to generate: validated, in the engine's own terms."""

    prompt: list[int]
    max_tokens: int
    min_tokens: int
    end_ids: tuple[int, ...]
    stop_words: tuple[tuple[int, ...], ...]
    sample: bool  # False: greedy; temperature, top_k, top_p and seed do not matter
    temperature: float
    top_k: int  # 0: all tokens
    top_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    log_probs: bool
    streaming: bool
    echo_text: bool  # the text begins with the prompt's
    guide: Guide | None = None  # what the answer must match; one that has been checked


@dataclass(frozen=True)
class Add:
    """Generate a sequence; `key` is never used twice."""

    key: int
    sequence: Sequence


@dataclass(frozen=True)
class Stop:
    """End a sequence and free what it holds."""

    key: int
    report: bool  # whether a last chunk, with finish `cancelled`, is wanted


@dataclass(frozen=True)
class Ready:
    """The engine is loaded."""


@dataclass(frozen=True)
class Failed:
    """The engine cannot go on and ends; every sequence is lost."""

    reason: str


@dataclass
class Chunk:
    """What a sequence has produced since its last chunk."""

    key: int
    tokens: list[int]
    log_probs: list[float]
    text: str
    finish: str | None = None  # stop | length | cancelled, with the last chunk
    error: str | None = None  # instead of anything else
    first_token_ns: int = 0  # with the last chunk: when the first token was there
    drafted: int = 0  # with the last chunk: tokens that were guessed; 0 where that is not known
    accepted: int = 0  # with the last chunk: guesses that held


@dataclass
class Report:
    """What one turn of the engine's loop brought. Times are nanoseconds of the monotonic clock."""

    time_ns: int = 0
    started: list[int] = field(default_factory=list)  # keys that left the queue
    chunks: list[Chunk] = field(default_factory=list)
    waiting: int = 0
    active: int = 0
    reserved_blocks: int = 0
    used_blocks: int = 0  # of the KV cache, by running sequences
