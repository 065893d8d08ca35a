"""Who may ask, and how often."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from deploy.gateway.errors import ApiError
from toolchain.errors import UsageError, file_error

KEYS_VARIABLE = "LLMBUILD_API_KEYS"
_MANY = 10_000  # buckets, beyond which those that are full again are forgotten


def read_keys(file: Path | None) -> list[str]:
    """The bearer tokens of `file`, one a line, `#` begins a comment; else those of $LLMBUILD_API_KEYS.

    In the variable they are separated by white space. None at all: everybody may ask.

    Raises:
        UsageError: the file cannot be read or holds no key, or a key no header could carry.
    """
    if file is None:
        keys = os.environ.get(KEYS_VARIABLE, "").split()
        where = f"${KEYS_VARIABLE}"
    else:
        where = str(file)
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise file_error(error, "read the API keys") from error
        except UnicodeDecodeError as error:
            raise UsageError("the API keys are not UTF-8 text", where=where) from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise UsageError("there is no API key in the file", where=where, fix="write one a line")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UsageError(
            "an API key is not a word of printable ASCII characters",
            where=where,
            fix="make one with `openssl rand -hex 24`",
        )
    return keys


class Keys:
    """The bearer tokens that open the door; without any it is open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def caller(self, authorization: str | None) -> str | None:
        """Which key the header carries, as a name that does not tell it; None where none is asked for.

        Takes as long for a wrong key as for a right one.

        Raises:
            ApiError: 401: there is none, or it is not one of ours.
        """
        if not self._digests:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            told = "no API key was sent" if authorization is None else "the API key is not valid"
            raise ApiError(401, f"{told}; send `Authorization: Bearer KEY`", code="invalid_api_key")
        return f"key {matches.index(True)}"


class RateLimit:
    """A bucket of tokens for each caller: `per_minute` requests, of which a minute's worth at once.

    Args:
        per_minute: 0 is no limit.
        clock: seconds, rising.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(per_minute)
        self._rate = per_minute / 60
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # caller -> tokens left, when

    def take(self, caller: str) -> None:
        """Count one request of `caller`.

        Raises:
            ApiError: 429: the bucket is empty; tells when there will be a token in it.
        """
        if not self._most:
            return
        now = self._clock()
        left = self._left(caller, now)
        if left < 1:
            wait = max(1, math.ceil((1 - left) / self._rate))
            raise ApiError(
                429,
                f"more than {self._most:g} requests a minute; the next is taken in {wait} s",
                code="rate_limit_exceeded",
                retry_after_s=wait,
            )
        self._buckets[caller] = left - 1, now
        if len(self._buckets) > _MANY:
            self._buckets = {
                who: at for who, at in self._buckets.items() if self._left(who, now) < self._most
            }

    def _left(self, caller: str, now: float) -> float:
        left, at = self._buckets.get(caller, (self._most, now))
        return min(self._most, left + (now - at) * self._rate)
