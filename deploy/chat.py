"""Turn messages into a prompt with the chat template that a tokenizer carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain.errors import UsageError


class ChatTemplate:
    """The chat template of one tokenizer, loaded once.

    Nothing of the tokenizer's directory is run as code except the template, in transformers' sandbox.
    """

    def __init__(self, tokenizer: Any, where: Path) -> None:
        self._tokenizer = tokenizer
        self._where = where

    @classmethod
    def load(cls, tokenizer_dir: Path) -> ChatTemplate:
        """Read it from a directory with a tokenizer.

        Raises:
            UsageError: there is no tokenizer or no template.
        """
        if not (tokenizer_dir / "tokenizer_config.json").is_file():
            raise UsageError(
                "no tokenizer to take a chat template from",
                where=str(tokenizer_dir),
                why="there is no tokenizer_config.json",
                fix="give the directory of the model, as downloaded",
            )
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                tokenizer_dir, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                "the tokenizer cannot be loaded", where=str(tokenizer_dir), why=str(error)
            ) from error
        if tokenizer.chat_template is None:
            raise UsageError(
                "this model has no chat template",
                where=str(tokenizer_dir),
                why="neither chat_template.jinja nor tokenizer_config.json has one",
                fix="leave out --chat, or use the instruction-tuned sibling of the model",
            )
        return cls(tokenizer, tokenizer_dir)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for `messages` (role and content each), ending where the model's answer begins.

        A begin-of-sequence token that the template writes and the tokenizer would add again is left to the
        tokenizer.

        Raises:
            UsageError: the template refuses the messages.
        """
        from jinja2 import TemplateError

        tokenizer = self._tokenizer
        try:
            prompt = tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise UsageError(
                "the chat template refuses these messages", where=str(self._where), why=str(error)
            ) from error
        begin = tokenizer.bos_token
        if begin and prompt.startswith(begin) and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]:
            return str(prompt[len(begin) :])
        return str(prompt)


def render_chat(tokenizer_dir: Path, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt for `messages` by the template in `tokenizer_dir`; raises as `ChatTemplate` does."""
    return ChatTemplate.load(tokenizer_dir).render(messages)
