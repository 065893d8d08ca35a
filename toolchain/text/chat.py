"""Chats as text, by the template that comes with a model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from toolchain.errors import DataError, ModelError


class ChatTemplate:
    """The chat template in a model's directory, loaded when the first chat is rendered."""

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir

    def render(self, messages: list[Any], where: str) -> str:
        """A chat as the text that the model was trained on; `where` is the place to name in an error.

        Raises:
            DataError: the messages are malformed, there is no template, or it refuses them.
            ModelError: the tokenizer that holds the template cannot be loaded.
        """
        well_formed = messages and all(
            isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
            for message in messages
        )
        if not well_formed:
            raise DataError(
                "the record's messages are malformed",
                where=where,
                fix='write [{"role": "user", "content": "..."}, ...]',
            )
        if self._tokenizer.chat_template is None:
            raise DataError(
                "the record is a chat, but the model's tokenizer has no chat template",
                where=where,
                fix="give the records as text, or put chat_template.jinja into the model's directory",
            )
        # A column of a table gives every message every key, with nothing in those that it does not have.
        present = [{k: v for k, v in m.items() if v is not None or k == "content"} for m in messages]
        try:
            return str(self._tokenizer.apply_chat_template(present, tokenize=False))
        except Exception as error:  # templates raise whatever their authors chose
            raise DataError(
                "the chat template refuses the record",
                where=where,
                why=str(error),
                fix="mend the record, or leave it out",
            ) from error

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._model_dir, local_files_only=True)
        except Exception as error:  # transformers raises many kinds here, and their text is what helps
            raise ModelError(
                "the model's tokenizer, which renders chats, cannot be loaded",
                where=str(self._model_dir),
                why=str(error).strip().partition("\n")[0] or type(error).__name__,
                fix="put the model's tokenizer.json and tokenizer_config.json into its directory",
            ) from error
