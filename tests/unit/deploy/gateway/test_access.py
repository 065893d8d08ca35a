from __future__ import annotations

from pathlib import Path

import pytest

from deploy.gateway.access import KEYS_VARIABLE, Keys, RateLimit, read_keys
from deploy.gateway.errors import ApiError
from toolchain.errors import UsageError


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# team a\n alpha \n\nbeta\n")
    assert read_keys(file) == ["alpha", "beta"]
    assert read_keys(None) == []
    monkeypatch.setenv(KEYS_VARIABLE, "gamma\ndelta")
    assert read_keys(None) == ["gamma", "delta"]
    assert read_keys(file) == ["alpha", "beta"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nothing\n", "there is no API key in the file\n  fix: write one a line"),
        (b"a b\n", "not a word of printable ASCII"),
        ("schlüssel\n".encode(), "not a word of printable ASCII"),
        (b"\xff\n", "not UTF-8 text"),
        (None, "cannot read the API keys: No such file"),
    ],
)
def test_keys_that_cannot_be_used_are_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_keys(tmp_path / "keys")


def test_only_a_key_opens_the_door() -> None:
    keys = Keys(["alpha", "beta"])
    assert keys.caller("Bearer alpha") == "key 0"
    assert keys.caller("bearer  beta ") == "key 1"
    for wrong in (None, "", "alpha", "Bearer", "Bearer ", "Bearer alph", "Bearer alphaa", "Basic alpha"):
        with pytest.raises(ApiError, match="send `Authorization: Bearer KEY`") as caught:
            keys.caller(wrong)
        assert caught.value.status == 401
    assert Keys([]).caller("anything") is None


def test_a_bucket_gives_a_minute_s_worth_and_fills_again() -> None:
    now = 0.0
    limit = RateLimit(30, clock=lambda: now)
    for _ in range(30):
        limit.take("a")
    with pytest.raises(ApiError, match="more than 30 requests a minute; the next is taken in 2 s") as caught:
        limit.take("a")
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "2"})
    limit.take("b")
    now = 2.0
    limit.take("a")
    with pytest.raises(ApiError, match="more than"):
        limit.take("a")
    now = 1e6
    for _ in range(30):
        limit.take("a")
    with pytest.raises(ApiError, match="more than"):
        limit.take("a")


def test_no_limit_is_no_limit_and_callers_are_forgotten() -> None:
    unlimited = RateLimit(0)
    for _ in range(1000):
        unlimited.take("a")
    now = 0.0
    limit = RateLimit(60, clock=lambda: now)
    for number in range(20_000):
        now += 0.01
        limit.take(str(number))
    assert len(limit._buckets) <= 10_000
