"""What the gateway does with text: chat templates, and counting and telling apart tokens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from deploy.chat import ChatTemplate
from deploy.gateway.errors import ApiError
from toolchain.errors import UsageError


class Prompts:
    """The tokenizer of the model and its chat template, which is loaded when it is first needed.

    Safe to call from several threads.
    """

    def __init__(self, tokenizer_dir: Path) -> None:
        """Raises UsageError if there is no tokenizer.json that can be read."""
        self._dir = tokenizer_dir
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing more precise
            raise UsageError(
                "the tokenizer cannot be loaded", where=str(tokenizer_dir), why=str(error)
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._loading = threading.Lock()
        self._template: ChatTemplate | None = None

    def count(self, prompt: str) -> int:
        """Tokens of a prompt, as the server will count them."""
        return len(self._tokenizer.encode(prompt).ids)

    def count_answer(self, text: str) -> int:
        """Tokens that `text` takes; the model may have spelled it otherwise."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def split(self, text: str, count: int) -> list[str]:
        """`text`, which is of `count` generated tokens, as their texts.

        The server tells the text of a response, not of each of its tokens: several are split as the tokenizer
        splits, and where that gives another number, the whole text goes with the last.
        """
        if count > 1 and text:
            offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
            begins = [begin for begin, _ in offsets]
            if len(begins) == count and begins[0] == 0:
                return [text[a:b] for a, b in zip(begins, [*begins[1:], len(text)], strict=True)]
        return [""] * (count - 1) + [text]

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for `messages` (role and content each).

        Raises:
            ApiError: 400: the model has no chat template, or it refuses the messages.
        """
        try:
            return self._loaded().render(messages)
        except UsageError as error:
            raise ApiError(400, f"{error.what}: {error.why}", param="messages") from error

    def load_template(self) -> None:
        """Load the chat template now. A model without one is told of when it is asked to chat."""
        with contextlib.suppress(UsageError):
            self._loaded()

    def _loaded(self) -> ChatTemplate:
        with self._loading:
            if self._template is None:
                self._template = ChatTemplate.load(self._dir)
            return self._template
