"""The peer of the serving figures: OpenVINO GenAI's continuous batching alone, without a server.

    python -m benchmarks.bare_genai REPOSITORY

Reads one round a line from stdin, `{"prompts": [[token, ...], ...], "tokens": [n, ...]}` with either
`"concurrency": c` (closed loop) or `"arrivals": [seconds, ...]` (open loop), runs it, and answers with one
line, `{"seconds": s, "ttft": [...], "tokens": total}`. The pipeline has the settings of the repository's
model.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from toolchain.engine.openvino import disable_telemetry

disable_telemetry()

import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402

from deploy.pbtxt import read_config  # noqa: E402

BLOCK = 32


def main() -> None:
    """Load, then serve rounds until stdin closes."""
    repository = Path(sys.argv[1])
    parameters = {
        key: value.string_value
        for key, value in read_config(repository / "tensorrt_llm" / "config.pbtxt").parameters.items()
    }
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = -(-int(parameters["max_tokens_in_paged_kv_cache"]) // BLOCK)
    scheduler.max_num_batched_tokens = int(parameters["max_num_tokens"])
    scheduler.dynamic_split_fuse = parameters["enable_chunked_context"] == "true"
    scheduler.enable_prefix_caching = parameters["enable_kv_cache_reuse"] == "true"
    properties = json.loads(parameters["plugin_properties"])
    pipeline = genai.ContinuousBatchingPipeline(
        repository / parameters["gpt_model_path"], scheduler, "CPU", properties
    )
    print("ready", flush=True)
    keys = iter(range(1 << 62))
    for line in sys.stdin:
        print(json.dumps(_round(pipeline, json.loads(line), keys)), flush=True)


def _round(pipeline: Any, order: dict[str, Any], keys: Any) -> dict[str, Any]:
    waiting = list(zip(order["prompts"], order["tokens"], strict=True))[::-1]
    arrivals = order.get("arrivals", [0.0] * len(waiting))[::-1]
    concurrency = order.get("concurrency", len(waiting))
    running: list[tuple[Any, float, list[int]]] = []
    ttft: list[float] = []
    tokens = 0
    started = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < concurrency and time.perf_counter() >= started + arrivals[-1]:
            ids, length = waiting.pop()
            arrival = arrivals.pop()
            due = started + arrival if "arrivals" in order else time.perf_counter()
            config = genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = length
            handle = pipeline.add_request(next(keys), ov.Tensor(np.asarray([ids], dtype=np.int64)), config)
            running.append((handle, due, []))
        if not running:
            time.sleep(max(0.0, started + arrivals[-1] - time.perf_counter()))
            continue
        pipeline.step()
        still = []
        for handle, due, got in running:
            while handle.can_read():
                for output in handle.read().values():
                    if not got:
                        ttft.append(time.perf_counter() - due)
                    got += output.generated_ids
            if handle.get_status() == genai.GenerationStatus.RUNNING:
                still.append((handle, due, got))
            else:
                tokens += len(got)
        running = still
    return {"seconds": time.perf_counter() - started, "ttft": ttft, "tokens": tokens}


if __name__ == "__main__":
    main()
