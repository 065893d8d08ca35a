"""The requests of OpenAI's API: what is taken, what is refused, what is passed over.

Types are strict. A field that is not known is ignored, because clients send many that do not change the
answer; those that would change it, and that no engine here follows, are refused by name.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

MAX_CHOICES = 128
"""Answers to one request: prompts times `n`."""

_UNSUPPORTED = (
    "best_of", "echo", "suffix", "logit_bias", "tools", "functions", "function_call", "audio", "prediction",
    "web_search_options", "top_logprobs", "min_p", "min_tokens", "ignore_eos", "bad_words", "use_beam_search",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "prompt_logprobs",
    "add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs",
)  # fmt: skip
_NOTHING = {
    "best_of": 1,
    "add_generation_prompt": True,
}  # values that ask for nothing, besides the empty ones

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: bool | None = None


class Sampling(_Body):
    """What both kinds of requests have in common; None is what OpenAI's default says.

    `top_k` and `repetition_penalty` are not OpenAI's, but what other servers of its API take as well.
    """

    model: Text
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    max_tokens: Count | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Text | Annotated[list[Text], Field(max_length=128)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        if isinstance(body, dict):
            asked = [name for name in _UNSUPPORTED if body.get(name) not in (None, _NOTHING.get(name))]
            if wanted := [name for name in asked if body[name] not in (False, 0, "", [], {})]:
                raise ValueError(f"{', '.join(wanted)}: not supported here; leave it out")
        return body

    @property
    def stop_words(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed answer ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(Sampling):
    """Body of `/v1/completions`. Prompts are text: token ids would have to be of this very tokenizer."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
    logprobs: int | None = Field(default=None, ge=0, le=0, description="0: of the token that was chosen.")

    @property
    def prompts(self) -> list[str]:
        """`prompt` as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _bounded(self) -> CompletionRequest:
        if len(self.prompts) * (self.n or 1) > MAX_CHOICES:
            raise ValueError(f"prompts times n must be at most {MAX_CHOICES}")
        return self


class TextPart(_Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """One message. OpenAI's newer word for `system`, `developer`, is not in the templates of models."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def to_template(self) -> dict[str, str]:
        """Role and content as a chat template takes them."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class JsonSchema(_Body):
    """`response_format.json_schema`; enforced, `strict` or not."""

    name: str | None = None
    schema_: dict[str, JsonValue] = Field(alias="schema")


class ResponseFormat(_Body):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self

    @property
    def guide(self) -> tuple[str, str] | None:
        """Kind and text of the guide that the answer must match, in the server's words."""
        if self.type == "json_object":
            return "json", ""
        if self.json_schema is not None and self.type == "json_schema":
            return "json_schema", json.dumps(self.json_schema.schema_)
        return None


class ChatRequest(Sampling):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    response_format: ResponseFormat | None = None
