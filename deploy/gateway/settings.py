"""What a gateway must be told; passed to its process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class GatewaySettings:
    """Settings of one gateway.

    Attributes:
        upstream: `host:port` of Triton's gRPC port.
        model: the name that clients ask for.
        tokenizer_dir: of the model: tokenizer.json and the chat template.
        max_seq_len: tokens of prompt and answer together.
        api_keys: a file with the bearer tokens; None: those of $LLMBUILD_API_KEYS, if there are any.
        requests_per_minute: of one key, or of one address where there are no keys; 0: any number.
        max_request_bytes: length of a request's body.
        cors_origins: web pages of these origins may ask; none by default.
        tls_cert, tls_key: PEM files; without them the gateway speaks plain HTTP.
        drain_s: seconds that answers under way get when it stops.
    """

    upstream: str
    model: str
    tokenizer_dir: str
    max_seq_len: int
    api_keys: str | None = None
    requests_per_minute: int = 0
    max_request_bytes: int = 1 << 20
    cors_origins: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    drain_s: int = 30

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GatewaySettings:
        """What `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"cors_origins": tuple(fields["cors_origins"])})

    @property
    def keys_file(self) -> Path | None:
        """`api_keys` as a path."""
        return Path(self.api_keys) if self.api_keys else None
