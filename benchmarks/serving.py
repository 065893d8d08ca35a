"""Tokens through Triton's gRPC streaming over the same requests through the bare GenAI pipeline."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.conditions import percentile
from benchmarks.workbench import MODEL, prompts, repository
from deploy.client import Client, Summary
from deploy.server import TritonServer

PROMPT, ANSWER, ROUNDS = 64, 64, 5
REQUESTS = {1: 4, 8: 24, 32: 64}  # concurrency -> requests of a round


def run(stream_interval: int = 1) -> dict[str, Any]:
    """Alternate rounds of the two, each with its own prompts; the ratio is of the medians."""
    path = repository("serving", f"engine.stream_interval={stream_interval}")
    rows = []
    with Bare(path) as bare, TritonServer.start(path) as server, Client(server.endpoints.grpc) as client:
        for concurrency, count in REQUESTS.items():
            speeds: dict[str, list[float]] = {"bare": [], "triton": []}
            firsts: dict[str, list[float]] = {"bare": [], "triton": []}
            for number in range(ROUNDS + 1):
                asked = prompts(count, PROMPT, seed=1000 * concurrency + number)
                for name, one in (("bare", bare.round), ("triton", lambda c, p: triton(client, c, p))):
                    seconds, ttft, tokens = one(concurrency, asked)
                    assert tokens == count * ANSWER
                    if number:  # the first round warms up
                        speeds[name].append(tokens / seconds)
                        firsts[name].append(1e3 * percentile(ttft, 50))
            medians = {name: statistics.median(values) for name, values in speeds.items()}
            ttfts = {name: statistics.median(values) for name, values in firsts.items()}
            rows.append(
                {
                    "concurrency": concurrency,
                    "bare, tokens/s": round(medians["bare"], 1),
                    "Triton, tokens/s": round(medians["triton"], 1),
                    "ratio (goal: 0.95)": round(medians["triton"] / medians["bare"], 3),
                    "bare TTFT p50, ms": round(ttfts["bare"], 1),
                    "Triton TTFT p50, ms": round(ttfts["triton"], 1),
                    "more, ms (goal: 10)": round(ttfts["triton"] - ttfts["bare"], 1),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return {
        "model": MODEL,
        "load": f"closed loop, prompts of {PROMPT} tokens, answers of {ANSWER}; {ROUNDS} rounds, alternating",
        "stream_interval": stream_interval,
        "rows": rows,
    }


class Bare:
    """The bare pipeline in a process of its own, so that neither disturbs the other while it waits."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_genai", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert self._read() == "ready"

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def round(self, concurrency: int, asked: list[tuple[str, list[int]]]) -> tuple[float, list[float], int]:
        """Seconds, time to first token of each request, tokens."""
        order = {"concurrency": concurrency, "prompts": [ids for _, ids in asked], "tokens": ANSWER}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        answer = json.loads(self._read())
        return answer["seconds"], answer["ttft"], answer["tokens"]

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def triton(
    client: Client, concurrency: int, asked: list[tuple[str, list[int]]]
) -> tuple[float, list[float], int]:
    """The same requests as text through the ensemble, `concurrency` of them at a time."""
    waiting = [text for text, _ in asked][::-1]
    summaries: list[Summary] = []

    def one_after_another() -> None:
        while True:
            try:
                text = waiting.pop()
            except IndexError:
                return
            parts = client.generate(text, max_tokens=ANSWER, min_tokens=ANSWER)
            summaries.append(next(part for part in parts if isinstance(part, Summary)))

    threads = [threading.Thread(target=one_after_another) for _ in range(concurrency)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return seconds, [s.ttft_s for s in summaries], sum(s.tokens for s in summaries)


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 1), indent=2))
