"""In-flight against static batching: mixed lengths, Poisson arrivals, one engine, the same requests."""

from __future__ import annotations

import json
import math
import random
import sys
from typing import Any

from benchmarks.load import Answer, Load
from benchmarks.spread import percentile
from benchmarks.workbench import MODEL, prompts, repository
from deploy.server import TritonServer

REQUESTS, RATE, SHORTEST, LONGEST, PROMPT, BATCH = 160, 12.0, 8, 256, 48, 16


def run() -> dict[str, Any]:
    """One server at a time, `deploy.batching` being all that differs."""
    rows: list[dict[str, Any]] = []
    for batching in ("static", "inflight_fused"):
        path = repository("batching", f"deploy.batching={batching}", f"engine.max_batch_size={BATCH}")
        with TritonServer.start(path) as server, Load(server.endpoints.grpc) as load:
            _send(load, BATCH, seed=1)  # warm up
            seconds, answers = _send(load, REQUESTS, seed=7)
        latencies = [answer.last - answer.due for answer in answers]
        rows.append(
            {
                "batching": batching,
                "tokens/s": round(sum(answer.tokens for answer in answers) / seconds, 1),
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


def _send(load: Load, count: int, seed: int) -> tuple[float, list[Answer]]:
    """Seconds from the first arrival to the last answer, and the answers."""
    draw = random.Random(seed)
    lengths = [round(math.exp(draw.uniform(math.log(SHORTEST), math.log(LONGEST)))) for _ in range(count)]
    at, arrivals = 0.0, []
    for _ in range(count):
        at += draw.expovariate(RATE)
        arrivals.append(at)
    texts = [text for text, _ in prompts(count, PROMPT, seed)]
    requests = [load.request(text, length) for text, length in zip(texts, lengths, strict=True)]
    seconds, answers = load.open_loop(requests, arrivals)
    assert [answer.tokens for answer in answers] == lengths
    return seconds, answers


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
