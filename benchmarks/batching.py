"""In-flight against static batching: mixed lengths, Poisson arrivals, one engine, the same requests."""

from __future__ import annotations

import json
import math
import random
import sys
import threading
import time
from typing import Any

from benchmarks.conditions import percentile
from benchmarks.workbench import MODEL, prompts, repository
from deploy.client import Client, Summary
from deploy.server import TritonServer

REQUESTS, RATE, SHORTEST, LONGEST, PROMPT = 160, 12.0, 8, 256, 48


def run() -> dict[str, Any]:
    """One server at a time, `deploy.batching` being all that differs."""
    rows: list[dict[str, Any]] = []
    for batching in ("static", "inflight_fused"):
        path = repository("batching", f"deploy.batching={batching}", "engine.max_batch_size=16")
        with TritonServer.start(path) as server, Client(server.endpoints.grpc) as client:
            _load(client, 16, seed=1)  # warm up
            seconds, tokens, latencies = _load(client, REQUESTS, seed=7)
        rows.append(
            {
                "batching": batching,
                "tokens/s": round(tokens / seconds, 1),
                "latency p50, s": round(percentile(latencies, 50), 2),
                "latency p99, s": round(percentile(latencies, 99), 2),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return {
        "model": MODEL,
        "load": f"{REQUESTS} requests, Poisson arrivals at {RATE:g}/s (more than either serves), prompts of "
        f"{PROMPT} tokens, answers of {SHORTEST} to {LONGEST} tokens (log-uniform), max_batch_size 16",
        "rows": rows,
        "ratio (goal: 2)": round(rows[1]["tokens/s"] / rows[0]["tokens/s"], 2),
    }


def _load(client: Client, count: int, seed: int) -> tuple[float, int, list[float]]:
    """Send `count` requests at random times; seconds from the first to the last answer, tokens, latencies."""
    draw = random.Random(seed)
    lengths = [round(math.exp(draw.uniform(math.log(SHORTEST), math.log(LONGEST)))) for _ in range(count)]
    at, arrivals = 0.0, []
    for _ in range(count):
        at += draw.expovariate(RATE)
        arrivals.append(at)
    summaries: list[Summary] = []

    def one(text: str, length: int) -> None:
        parts = client.generate(text, max_tokens=length, min_tokens=length)
        summaries.append(next(part for part in parts if isinstance(part, Summary)))

    threads = []
    started = time.perf_counter()
    for (text, _), length, arrival in zip(prompts(count, PROMPT, seed), lengths, arrivals, strict=True):
        time.sleep(max(0.0, started + arrival - time.perf_counter()))
        threads.append(threading.Thread(target=one, args=(text, length)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    assert sum(summary.tokens for summary in summaries) == sum(lengths)
    return seconds, sum(lengths), [summary.duration_s for summary in summaries]


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
