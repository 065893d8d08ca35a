from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.ports import choose_ports, holder_of
from toolchain.errors import LaunchError

LOOPBACK = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


def test_picks_distinct_free_ports_and_leaves_them_free() -> None:
    ports = choose_ports(LOOPBACK, {"http": 0, "grpc": 0, "metrics": 0})
    assert list(ports) == ["http", "grpc", "metrics"]
    assert len(set(ports.values())) == 3
    assert choose_ports(LOOPBACK, ports) == ports


def test_names_who_holds_a_port(taken: int) -> None:
    who = f"pid {os.getpid()} \\({Path('/proc/self/comm').read_text().strip()}\\) listens on it"
    with pytest.raises(
        LaunchError, match=f"the grpc port {taken} is taken\n  why: {who}\n  fix: .*--grpc-port"
    ):
        choose_ports(LOOPBACK, {"http": 0, "grpc": taken})


def test_a_port_taken_on_loopback_is_taken_on_all_addresses(taken: int) -> None:
    with pytest.raises(LaunchError, match=f"the http port {taken} is taken"):
        choose_ports("0.0.0.0", {"http": taken})


def test_nobody_holds_a_free_port() -> None:
    assert holder_of(choose_ports(LOOPBACK, {"http": 0})["http"]) is None


def test_one_port_cannot_serve_two() -> None:
    with pytest.raises(LaunchError, match=r"port 18000 is given more than once\n  fix: .*--http-port"):
        choose_ports(LOOPBACK, {"http": 18000, "grpc": 18000, "metrics": 0})


@pytest.mark.parametrize("port", [-1, 65536])
def test_refuses_what_is_no_port(port: int) -> None:
    with pytest.raises(LaunchError, match=f"{port} is not a port number"):
        choose_ports(LOOPBACK, {"http": port})


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_refuses_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(
        LaunchError, match=f"{host}:0: cannot listen on the http port\n.*\n  fix: give --host"
    ):
        choose_ports(host, {"http": 0})
