"""The gateway's routes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from deploy.gateway.access import Keys, RateLimit, read_keys
from deploy.gateway.answers import Answer, Answers
from deploy.gateway.errors import ApiError, from_validation
from deploy.gateway.http import ClientGoneError, EventStream, error_response, read_body, unless_gone
from deploy.gateway.prompts import Prompts
from deploy.gateway.schema import ChatRequest, CompletionRequest, Sampling
from deploy.gateway.settings import GatewaySettings
from deploy.gateway.upstream import Upstream

Body = TypeVar("Body", bound=Sampling)
_CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody reads it but a log


def make_app(settings: GatewaySettings) -> FastAPI:
    """The application. Raises UsageError for keys or a tokenizer that cannot be read."""
    routes = _Routes(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        upstream = Upstream(settings.upstream)
        routes.open(upstream)
        yield
        await upstream.close()

    app = FastAPI(title="llmbuild", lifespan=lifespan, openapi_url=None)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_api_route("/health", routes.health, methods=["GET"])
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", routes.model, methods=["GET"])
    app.add_api_route("/v1/completions", routes.completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"])
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_defect)
    return app


class _Routes:
    """The routes of one gateway, and what they share."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._keys = Keys(read_keys(settings.keys_file))
        self._rate = RateLimit(settings.requests_per_minute)
        self._prompts = Prompts(Path(settings.tokenizer_dir))
        self._started = int(time.time())

    def open(self, upstream: Upstream) -> None:
        """Begin to serve, in the loop that runs."""
        self._upstream = upstream
        self._answers = Answers(upstream, self._prompts, self._settings.max_seq_len)
        # The chat template's library takes seconds to load; the first chat need not wait for all of them.
        threading.Thread(target=self._prompts.load_template, daemon=True).start()

    async def health(self) -> Response:
        """Whether a request would be taken; asks for no key."""
        if not await self._upstream.is_ready():
            return JSONResponse({"status": "unavailable"}, 503)
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._caller(request)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request, name: str) -> Response:
        """The one model, by name."""
        self._caller(request)
        self._check_model(name)
        return JSONResponse(self._card())

    async def completions(self, request: Request) -> Response:
        """`/v1/completions`."""
        body = await self._admitted(request, CompletionRequest)
        return await self._told(request, body, await self._answers.to_completion(body))

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        body = await self._admitted(request, ChatRequest)
        return await self._told(request, body, await self._answers.to_chat(body))

    async def _admitted(self, request: Request, kind: type[Body]) -> Body:
        """The body of a request that may be answered."""
        self._rate.take(self._caller(request))
        raw = await read_body(request, self._settings.max_request_bytes)
        try:
            body = kind.model_validate_json(raw)
        except ValidationError as error:
            raise from_validation(error) from error
        self._check_model(body.model)
        return body

    async def _told(self, request: Request, body: Sampling, answer: Answer) -> Response:
        if not body.stream:
            return JSONResponse(await unless_gone(request.receive, answer.whole()))
        chunks = answer.chunks()
        # The first is awaited here: a request that is refused has an HTTP status of its own.
        first = await unless_gone(request.receive, anext(chunks))
        return EventStream(first, chunks)

    def _caller(self, request: Request) -> str:
        name = self._keys.caller(request.headers.get("authorization"))
        return name or (request.client.host if request.client else "")

    def _check_model(self, name: str) -> None:
        if name != self._settings.model:
            raise ApiError(
                404,
                f"there is no model {name!r} here; it is {self._settings.model!r}",
                code="model_not_found",
                param="model",
            )

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._settings.model,
            "object": "model",
            "created": self._started,
            "owned_by": "llmbuild",
            "max_model_len": self._settings.max_seq_len,
        }


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    response = error_response(ApiError(error.status_code, f"{where}: {error.detail}"))
    response.headers.update(error.headers or {})
    return response


async def _on_defect(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "a defect of the gateway; its log says more"))
