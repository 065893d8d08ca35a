"""In-flight against static batching: mixed lengths, Poisson arrivals, one engine, the same requests."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
from typing import Any

from benchmarks.conditions import percentile
from benchmarks.load import Load, open_loop
from benchmarks.workbench import MODEL, prompts, repository
from deploy.server import TritonServer

REQUESTS, RATE, SHORTEST, LONGEST, PROMPT, BATCH = 160, 12.0, 8, 256, 48, 16


def run() -> dict[str, Any]:
    """One server at a time, `deploy.batching` being all that differs."""
    rows: list[dict[str, Any]] = []
    for batching in ("static", "inflight_fused"):
        path = repository("batching", f"deploy.batching={batching}", f"engine.max_batch_size={BATCH}")
        with TritonServer.start(path) as server:
            seconds, tokens, latencies = asyncio.run(_measure(server.endpoints.grpc))
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
        f"{PROMPT} tokens, answers of {SHORTEST} to {LONGEST} tokens (log-uniform), max_batch_size {BATCH}",
        "rows": rows,
        "ratio (goal: 2)": round(rows[1]["tokens/s"] / rows[0]["tokens/s"], 2),
    }


async def _measure(address: str) -> tuple[float, int, list[float]]:
    """Seconds from the first arrival to the last answer, tokens, and the latency of each request."""
    load = Load(address)
    await _send(load, BATCH, seed=1)  # warm up
    try:
        return await _send(load, REQUESTS, seed=7)
    finally:
        await load.close()


async def _send(load: Load, count: int, seed: int) -> tuple[float, int, list[float]]:
    draw = random.Random(seed)
    lengths = [round(math.exp(draw.uniform(math.log(SHORTEST), math.log(LONGEST)))) for _ in range(count)]
    at, arrivals = 0.0, []
    for _ in range(count):
        at += draw.expovariate(RATE)
        arrivals.append(at)
    texts = [text for text, _ in prompts(count, PROMPT, seed)]
    requests = [load.request(text, length) for text, length in zip(texts, lengths, strict=True)]
    seconds, answers = await open_loop(load, requests, arrivals)
    assert sum(answer.tokens for answer in answers) == sum(lengths)
    return seconds, sum(lengths), [answer.last - answer.due for answer in answers]


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
