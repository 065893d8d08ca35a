"""Triton's gRPC streaming against the bare GenAI pipeline: the same requests, the same engine settings."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.load import Load
from benchmarks.spread import percentile
from benchmarks.workbench import MODEL, prompts, repository
from deploy.server import TritonServer

PROMPT, SHORTEST, LONGEST, ROUNDS = 64, 32, 96, 4
REQUESTS = {1: 6, 8: 24, 32: 80}  # concurrency -> requests of a round
PROBES = 8

Order = dict[str, Any]
Outcome = tuple[float, list[float], int]  # seconds, times to first token, tokens


def run(stream_interval: int | None = None) -> dict[str, Any]:
    """Throughput in a closed loop; time to first token of probes that join a running batch."""
    path = repository("serving", f"engine.stream_interval={stream_interval or 'null'}")
    with Bare(path) as bare, TritonServer.start(path) as server, Load(server.endpoints.grpc) as load:
        rows = _measure(bare, load)
    return {
        "model": MODEL,
        "throughput": f"closed loop, prompts of {PROMPT} tokens, answers of {SHORTEST} to {LONGEST}; medians "
        f"of {ROUNDS} rounds, the two alternating; the load generator runs on the same cores",
        "time to first token": f"of {PROBES} requests a round that arrive at random times, one at a time, "
        "while all but one of the streams run; median",
        "stream_interval": stream_interval or "by load",
        "rows": rows,
    }


def _measure(bare: Bare, load: Load) -> list[dict[str, Any]]:
    def triton(order: Order) -> Outcome:
        requests = [load.request(text, n) for text, n in zip(order["texts"], order["tokens"], strict=True)]
        if "arrivals" in order:
            seconds, answers = load.open_loop(requests, order["arrivals"])
        else:
            seconds, answers = load.closed_loop(order["concurrency"], requests)
        return seconds, [a.ttft for a in answers], sum(a.tokens for a in answers)

    rows = []
    for concurrency, count in REQUESTS.items():
        speeds: dict[str, list[float]] = {"bare": [], "triton": []}
        firsts: dict[str, list[float]] = {"bare": [], "triton": []}
        for number in range(ROUNDS + 1):
            seed = 1000 * concurrency + number
            throughput, latency = _closed(concurrency, count, seed), _probes(concurrency, seed)
            for name, one in (("bare", bare.round), ("triton", triton)):
                seconds, _, tokens = one(throughput)
                assert tokens == sum(throughput["tokens"])
                _, ttft, _ = one(latency)
                if number:  # the first round warms up
                    speeds[name].append(tokens / seconds)
                    firsts[name] += ttft[concurrency - 1 :]
        speed = {name: statistics.median(values) for name, values in speeds.items()}
        first = {name: 1e3 * percentile(values, 50) for name, values in firsts.items()}
        rows.append(
            {
                "concurrency": concurrency,
                "bare, tokens/s": round(speed["bare"], 1),
                "Triton, tokens/s": round(speed["triton"], 1),
                "ratio (goal: 0.95)": round(speed["triton"] / speed["bare"], 3),
                "bare TTFT, ms": round(first["bare"], 1),
                "Triton TTFT, ms": round(first["triton"], 1),
                "more, ms (goal: 10 at most)": round(first["triton"] - first["bare"], 1),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _closed(concurrency: int, count: int, seed: int) -> Order:
    draw = random.Random(seed)
    asked = prompts(count, PROMPT, seed)
    return {
        "concurrency": concurrency,
        "texts": [text for text, _ in asked],
        "prompts": [ids for _, ids in asked],
        "tokens": [draw.randint(SHORTEST, LONGEST) for _ in asked],
    }


def _probes(concurrency: int, seed: int) -> Order:
    """All but one stream from the start, long enough to outlive the probes that follow one by one."""
    draw = random.Random(seed)
    asked = prompts(concurrency - 1 + PROBES, PROMPT, seed + 500)
    step = 0.008 + 0.001 * concurrency  # seconds of a decoding step, roughly, for the length of the streams
    gaps = [draw.uniform(12, 24) * step for _ in range(PROBES)]
    at = [1.0 + sum(gaps[: i + 1]) for i in range(PROBES)]
    return {
        "arrivals": [0.0] * (concurrency - 1) + at,
        "texts": [text for text, _ in asked],
        "prompts": [ids for _, ids in asked],
        "tokens": [300] * (concurrency - 1) + [4] * PROBES,
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

    def round(self, order: Order) -> Outcome:
        """Run one order."""
        assert self._process.stdin
        sent = {key: value for key, value in order.items() if key != "texts"}
        self._process.stdin.write(json.dumps(sent) + "\n")
        answer = json.loads(self._read())
        return answer["seconds"], answer["ttft"], answer["tokens"]

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else None), indent=2))
