"""The parts of the client that need no server; the rest is in tests/flow/test_talk.py."""

from __future__ import annotations

import pytest

from deploy.client import Client, parse_address
from deploy.ports import choose_ports
from toolchain.errors import LaunchError, UsageError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("127.0.0.1:18001", "127.0.0.1:18001"),
        ("grpc://gpu-box:9000", "gpu-box:9000"),
        ("grpc://gpu-box:9000/", "gpu-box:9000"),
        ("gpu-box", "gpu-box:8001"),
        ("[::1]:9000", "[::1]:9000"),
        ("[::1]", "[::1]:8001"),
    ],
)
def test_takes_an_address_in_these_forms(url: str, address: str) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://gpu-box/v2"])
def test_says_that_grpc_is_wanted_and_not_http(url: str) -> None:
    with pytest.raises(UsageError, match=r"is no gRPC address\n  why: .*\n  fix: .*127\.0\.0\.1:8001 beside"):
        parse_address(url)


@pytest.mark.parametrize("url", ["", ":8001", "host:", "host:port", "host:0", "host:70000", "a/b:1"])
def test_refuses_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match=r"is no address\n  fix: give host:port"):
        parse_address(url)


def test_a_server_that_is_not_there_is_a_launch_error_with_the_command() -> None:
    port = choose_ports("127.0.0.1", {"grpc": 0})["grpc"]
    with Client(f"127.0.0.1:{port}") as client:
        assert not client.is_ready()
        with pytest.raises(
            LaunchError, match=r"no server answers\n(.*\n)*  fix: start it with `llmbuild serve"
        ):
            client.generate("x", max_tokens=1)
