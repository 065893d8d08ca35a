"""What is refused before anything is started; the rest is in tests/flow/test_gateway.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from deploy.gateway.process import Door
from deploy.gateway.settings import GatewaySettings
from toolchain.errors import LaunchError, UsageError


def door(**changes: Path | None) -> Door:
    return Door("127.0.0.1", 0, **{"api_keys": None, "tls_cert": None, "tls_key": None} | changes)


def test_a_door_holds_its_port() -> None:
    with door() as opened:
        port = int(opened.url.removeprefix("http://127.0.0.1:").removesuffix("/v1"))
        with pytest.raises(LaunchError, match=rf"the openai port {port} is taken\n(.*\n)*.* --openai-port"):
            Door("127.0.0.1", port, api_keys=None, tls_cert=None, tls_key=None)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_an_address_that_is_not_ours_names_the_option() -> None:
    with pytest.raises(LaunchError, match=r"cannot listen on the openai port\n(.*\n)*.*give --openai-host"):
        Door("192.0.2.1", 0, api_keys=None, tls_cert=None, tls_key=None)


def test_keys_and_certificates_are_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the API keys"):
        door(api_keys=tmp_path / "nothing")
    with pytest.raises(UsageError, match="give both --tls-cert and --tls-key"):
        door(tls_cert=tmp_path / "cert")
    (tmp_path / "pem").write_text("nonsense")
    with pytest.raises(UsageError, match="the TLS certificate and key cannot be used"):
        door(tls_cert=tmp_path / "pem", tls_key=tmp_path / "pem")


def test_settings_survive_their_journey() -> None:
    settings = GatewaySettings("h:1", "m", "/t", 9, cors_origins=("https://a",), tls_cert="c", drain_s=3)
    assert GatewaySettings.from_json(settings.to_json()) == settings
