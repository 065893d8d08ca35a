"""From a request's prompts to its answer: asks the server, and tells what it says in OpenAI's form."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from deploy.gateway.errors import ApiError
from deploy.gateway.prompts import Prompts
from deploy.gateway.schema import ChatRequest, CompletionRequest, Sampling
from deploy.gateway.shapes import ChatShape, Choice, CompletionShape, Shape, Token
from deploy.gateway.upstream import Piece, Upstream

COMPLETION_TOKENS = 16
"""OpenAI's `max_tokens` of a completion that names none; a chat goes on to the end of the context."""


@dataclass(frozen=True)
class Ask:
    """One request to the server: a prompt, counted, and how much may follow."""

    prompt: str
    prompt_tokens: int
    max_tokens: int


@dataclass
class Answer:
    """The answer to one HTTP request: `n` choices for each of `asks`, in that order."""

    upstream: Upstream
    prompts: Prompts
    shape: Shape
    request: Sampling
    asks: Sequence[Ask]
    values: dict[str, Any]  # inputs of the server, but for prompt and length
    log_probs: bool
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{self.shape.prefix}-{secrets.token_hex(16)}"
        self.created = int(time.time())
        self._choices = [Choice(index) for index in range(len(self.asks) * self._returns)]
        self._counts = [0] * len(self._choices)
        self._counted: set[int] = set()  # asks whose tokens the server counted

    @property
    def _returns(self) -> int:
        return self.request.n or 1

    async def whole(self) -> dict[str, Any]:
        """The body of the answer. Raises ApiError."""
        # Only a stream tells log-probabilities of answers of different lengths apart.
        async with aclosing(self._pieces(stream=self.log_probs)) as pieces:
            async for ask, piece in pieces:
                self._note(ask, piece)
        choices = []
        for choice in self._choices:
            self._end(choice)
            choices.append(self.shape.choice(choice, self.log_probs))
        return self._body(self.shape.whole, choices) | {"usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer in chunks, as it is generated. Raises ApiError, before the first chunk where it can."""
        opened: set[int] = set()
        ended: set[int] = set()
        async with aclosing(self._pieces(stream=True)) as pieces:
            async for ask, piece in pieces:
                choice, tokens = self._note(ask, piece)
                index = choice.index
                if index not in opened:
                    opened.add(index)
                    if (opening := self.shape.opening(index)) is not None:
                        yield self._chunk(opening)
                if piece.text or tokens:
                    yield self._chunk(self.shape.delta(index, piece.text, tokens))
                if choice.finish_reason is not None:
                    ended.add(index)
                    yield self._chunk(self.shape.ending(index, choice.finish_reason))
        for choice in self._choices:
            if choice.index not in ended:
                self._end(choice)
                yield self._chunk(self.shape.ending(choice.index, choice.finish_reason))
        if self.request.includes_usage:
            yield self._body(self.shape.chunk, []) | {"usage": self._usage()}

    async def _pieces(self, *, stream: bool) -> AsyncGenerator[tuple[int, Piece], None]:
        """The pieces of all asks as they come, each with the number of its ask."""
        if len(self.asks) == 1:
            async with aclosing(self._ask(0, stream)) as pieces:
                async for piece in pieces:
                    yield 0, piece
            return
        arrived: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue(len(self.asks))

        async def follow(number: int) -> None:
            try:
                async with aclosing(self._ask(number, stream)) as pieces:
                    async for piece in pieces:
                        await arrived.put((number, piece))
            except Exception as error:
                await arrived.put((number, error))
            else:
                await arrived.put((number, None))

        tasks = [asyncio.create_task(follow(number)) for number in range(len(self.asks))]
        try:
            running = len(tasks)
            while running:
                number, news = await arrived.get()
                if isinstance(news, Piece):
                    yield number, news
                elif news is None:
                    running -= 1
                else:
                    raise news
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ask(self, number: int, stream: bool) -> AsyncGenerator[Piece, None]:
        ask = self.asks[number]
        values = {"text_input": ask.prompt, "max_tokens": ask.max_tokens} | self.values
        return self.upstream.generate(values, f"{self.id}-{number}", stream=stream)

    def _note(self, ask: int, piece: Piece) -> tuple[Choice, list[Token] | None]:
        """Add a piece to its choice; returns that, and the piece's tokens if they were asked for."""
        choice = self._choices[ask * self._returns + piece.sequence]
        tokens: list[Token] | None = None
        if self.log_probs:
            tokens, offset = [], len(choice.text)
            texts = self.prompts.split(piece.text, len(piece.log_probs)) if piece.log_probs else []
            for text, log_prob in zip(texts, piece.log_probs, strict=True):
                tokens.append(Token(text, log_prob, offset))
                offset += len(text)
            choice.tokens += tokens
        choice.text += piece.text
        if piece.tokens is not None:
            self._counts[choice.index] = piece.tokens
            self._counted.add(ask)
        if piece.finish_reason:
            choice.finish_reason = piece.finish_reason
        return choice, tokens

    def _end(self, choice: Choice) -> None:
        """Tell why a choice ended where the server did not: by its length."""
        if choice.finish_reason is None:
            most = self.asks[choice.index // self._returns].max_tokens
            is_cut = self.prompts.count_answer(choice.text) >= most
            choice.finish_reason = "length" if is_cut else "stop"

    def _usage(self) -> dict[str, int]:
        for choice in self._choices:
            if choice.index // self._returns not in self._counted:
                self._counts[choice.index] = self.prompts.count_answer(choice.text)
        prompt, completion = sum(ask.prompt_tokens for ask in self.asks), sum(self._counts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        body = self._body(self.shape.chunk, [choice])
        return body | {"usage": None} if self.request.includes_usage else body

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        facts = {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}
        return {**facts, "system_fingerprint": None, "choices": choices}


class Answers:
    """Makes the answer to a request. `max_seq_len`: tokens of prompt and answer together."""

    def __init__(self, upstream: Upstream, prompts: Prompts, max_seq_len: int) -> None:
        self._upstream = upstream
        self._prompts = prompts
        self._max_seq_len = max_seq_len

    async def to_completion(self, request: CompletionRequest) -> Answer:
        """The answer to a completion, not begun yet. Raises ApiError if it cannot fit."""
        most = request.max_tokens or COMPLETION_TOKENS
        asks = [await self._measured(prompt, most, "prompt") for prompt in request.prompts]
        return self._answer(CompletionShape(), request, asks, request.logprobs is not None, None)

    async def to_chat(self, request: ChatRequest) -> Answer:
        """The answer to a chat, not begun yet. Raises ApiError if the model cannot take it."""
        messages = [message.to_template() for message in request.messages]
        prompt = await asyncio.to_thread(self._prompts.chat, messages)
        most = request.max_completion_tokens or request.max_tokens
        ask = await self._measured(prompt, most, "messages")
        guide = request.response_format.guide if request.response_format else None
        return self._answer(ChatShape(), request, [ask], bool(request.logprobs), guide)

    async def _measured(self, prompt: str, max_tokens: int | None, param: str) -> Ask:
        count = await asyncio.to_thread(self._prompts.count, prompt)
        left = self._max_seq_len - count
        if left < (max_tokens or 1):
            raise ApiError(
                400,
                f"the prompt has {count} tokens and max_tokens is {max_tokens or 1}: together more than the "
                f"{self._max_seq_len} that this model was built for",
                code="context_length_exceeded",
                param=param,
            )
        return Ask(prompt, count, max_tokens or left)

    def _answer(
        self,
        shape: Shape,
        request: Sampling,
        asks: Sequence[Ask],
        log_probs: bool,
        guide: tuple[str, str] | None,
    ) -> Answer:
        values = sampling_values(request)
        if log_probs:
            values["return_log_probs"] = True
        if guide is not None:
            kind, text = guide
            values |= {"guided_decoding_guide_type": kind} | ({"guided_decoding_guide": text} if text else {})
        return Answer(self._upstream, self._prompts, shape, request, asks, values, log_probs)


def sampling_values(request: Sampling) -> dict[str, Any]:
    """The server's inputs for how to sample: OpenAI's defaults are not the server's, which are greedy.

    A seed is always sent, because a server without one repeats itself.
    """
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    values: dict[str, Any]
    if temperature == 0 or top_p == 0 or request.top_k == 1:
        values = {"top_k": 1}
    else:
        values = {"temperature": temperature, "top_p": top_p}
        values |= {"top_k": request.top_k} if request.top_k else {}
    seed = secrets.randbits(32) if request.seed is None else request.seed % 2**64
    given = {
        "seed": seed,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
        "stop_words": request.stop_words or None,
        "num_return_sequences": request.n if request.n and request.n > 1 else None,
    }
    return values | {name: value for name, value in given.items() if value is not None}
