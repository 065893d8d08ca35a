from __future__ import annotations

import pytest

from deploy.gateway.errors import ApiError, from_server, unavailable


@pytest.mark.parametrize(
    ("message", "begun", "status", "kind"),
    [
        ("the queue is full: 4 sequence(s) are waiting", False, 429, "rate_limit_error"),
        ("Exceeds maximum queue size", False, 429, "rate_limit_error"),
        ("the engine died: signal 9", True, 503, "server_error"),
        ("the engine died (signal 9) and is being restarted; try again", False, 503, "server_error"),
        ("temperature is -1.0: must be 0 or more", False, 400, "invalid_request_error"),
        ("temperature is -1.0: must be 0 or more", True, 500, "server_error"),
        ("Failed to process the request(s) for model 'preprocessing'", False, 500, "server_error"),
    ],
)
def test_what_the_server_says_gets_its_status(message: str, begun: bool, status: int, kind: str) -> None:
    error = from_server(f"in ensemble 'ensemble', {message}", begun=begun)
    assert error.status == status
    assert error.to_json()["error"] | {"code": None} == {
        "message": message,
        "type": kind,
        "param": None,
        "code": None,
    }
    assert error.headers == ({"Retry-After": "1"} if status in (429, 503) else {})


def test_headers_go_with_the_status() -> None:
    assert ApiError(401, "no").headers == {"WWW-Authenticate": "Bearer"}
    assert unavailable("away").headers == {"Retry-After": "1"}
