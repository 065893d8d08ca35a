"""The two forms of an answer, `text_completion` and `chat.completion`: whole, and in chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

LOWEST = -9999.0
"""What a log-probability of minus infinity is told as; JSON has no such number."""


@dataclass(frozen=True)
class Token:
    """A generated token with its log-probability; `offset` is where its text begins in the answer."""

    text: str
    log_prob: float
    offset: int


@dataclass
class Choice:
    """One answer, as far as it is known."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)  # when log-probabilities were asked for
    finish_reason: str | None = None


class Shape(Protocol):
    """How an answer is told. `tokens` is None where no log-probabilities were asked for."""

    prefix: str
    whole: str
    chunk: str

    def choice(self, choice: Choice, has_log_probs: bool) -> dict[str, Any]:
        """An answer as a whole."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What comes before the first text of a streamed answer."""

    def delta(self, index: int, text: str, tokens: list[Token] | None) -> dict[str, Any]:
        """The next piece of a streamed answer."""

    def ending(self, index: int, reason: str | None) -> dict[str, Any]:
        """The end of a streamed answer."""


class CompletionShape:
    """Of `/v1/completions`."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, choice: Choice, has_log_probs: bool) -> dict[str, Any]:
        """See `Shape`."""
        tokens = choice.tokens if has_log_probs else None
        return self.delta(choice.index, choice.text, tokens) | {"finish_reason": choice.finish_reason}

    def opening(self, index: int) -> None:
        """See `Shape`."""
        return

    def delta(self, index: int, text: str, tokens: list[Token] | None) -> dict[str, Any]:
        """See `Shape`."""
        told = None
        if tokens is not None:
            told = {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [max(LOWEST, token.log_prob) for token in tokens],
                "top_logprobs": None,
                "text_offset": [token.offset for token in tokens],
            }
        return {"index": index, "text": text, "logprobs": told, "finish_reason": None}

    def ending(self, index: int, reason: str | None) -> dict[str, Any]:
        """See `Shape`."""
        return self.delta(index, "", None) | {"finish_reason": reason}


class ChatShape:
    """Of `/v1/chat/completions`."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, choice: Choice, has_log_probs: bool) -> dict[str, Any]:
        """See `Shape`."""
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._log_probs(choice.tokens if has_log_probs else None),
            "finish_reason": choice.finish_reason,
        }

    def opening(self, index: int) -> dict[str, Any]:
        """See `Shape`."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, text: str, tokens: list[Token] | None) -> dict[str, Any]:
        """See `Shape`."""
        return self._chunk(index, {"content": text}) | {"logprobs": self._log_probs(tokens)}

    def ending(self, index: int, reason: str | None) -> dict[str, Any]:
        """See `Shape`."""
        return self._chunk(index, {}) | {"finish_reason": reason}

    def _chunk(self, index: int, delta: dict[str, str]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _log_probs(self, tokens: list[Token] | None) -> dict[str, Any] | None:
        if tokens is None:
            return None
        content = [
            {
                "token": token.text,
                "logprob": max(LOWEST, token.log_prob),
                "bytes": list(token.text.encode()),
                "top_logprobs": [],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}
