"""What a request can fail of, in the form that OpenAI's clients read."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

RETRY_AFTER_S = 1
"""Seconds after which a request that found no room may be sent again."""

# Triton passes on a stream only the text of an error. These are of Triton and of our models.
_FULL = re.compile(r"queue is full|exceeds maximum queue size", re.IGNORECASE)
_DOWN = re.compile(r"engine (died|keeps failing)|is not ready|unavailable|being (un)?loaded", re.IGNORECASE)
_INTERNAL = re.compile(r"internal|stub process|traceback|failed to process", re.IGNORECASE)
_ENSEMBLE = re.compile(r"^in ensemble '[^']*', ")


class ApiError(Exception):
    """An answer that is an error: HTTP status, and OpenAI's `type`, `code` and `param`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        error = {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def from_server(message: str, *, begun: bool) -> ApiError:
    """The error for what Triton said; `begun`: after a part of the answer, when the request was fine."""
    message = _ENSEMBLE.sub("", message)
    if _FULL.search(message):
        return ApiError(429, message, code="queue_full", retry_after_s=RETRY_AFTER_S)
    if _DOWN.search(message):
        return unavailable(message)
    if begun or _INTERNAL.search(message):
        return ApiError(500, message, code="server_error")
    return ApiError(400, message)


def unavailable(message: str) -> ApiError:
    """There is no server to ask now."""
    return ApiError(503, message, code="unavailable", retry_after_s=RETRY_AFTER_S)


def from_validation(error: ValidationError) -> ApiError:
    """The error for a body that does not fit its model: every problem, the first one's place as `param`."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    places = [".".join(map(str, problem["loc"])) for problem in found]
    texts = [
        f"{place}: {problem['msg']}" if place else problem["msg"]
        for place, problem in zip(places, found, strict=True)
    ]
    more = f"; and {len(texts) - 5} more" if len(texts) > 5 else ""
    return ApiError(400, "; ".join(texts[:5]) + more, param=places[0] or None)


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
