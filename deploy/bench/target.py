"""What a load can be put on: the Protocol of a server that is sent requests and tells of its responses."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from deploy.bench.orders import Order


class Event(NamedTuple):
    """Something that came back.

    Attributes:
        key: of the request.
        at: when, in seconds of `time.perf_counter`.
        has_text: whether text of the answer came with it.
        input_tokens, output_tokens: of the whole request up to here, when the server tells.
        is_final: nothing more will come.
        error: the server's message, when it answers with one; nothing more will come then either.
    """

    key: int
    at: float
    has_text: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    is_final: bool = False
    error: str | None = None


class Target(Protocol):
    """A server, for one thread: where it is, the model that is asked, and what the server calls itself."""

    address: str
    model: str
    server: str

    def send(self, order: Order) -> int:
        """Send a request and return at once, with the key that its events will have."""
        ...

    def receive(self, timeout_s: float) -> Event | None:
        """The next event; None when there is none within `timeout_s`.

        Raises:
            LaunchError: the server went away.
        """
        ...

    def drop(self, keys: list[int]) -> None:
        """Tell the server that these requests are no longer wanted. Never raises."""
        ...

    def close(self) -> None:
        """Drop the connection."""
        ...
