"""The peer of the serving figures: OpenVINO GenAI's continuous batching alone, without a server.

    python -m benchmarks.bare_genai REPOSITORY

Reads one round a line from stdin, `{"concurrency": c, "prompts": [[token, ...], ...], "tokens": n}`, runs it
with `c` requests at a time, and answers with one line, `{"seconds": s, "ttft": [...], "tokens": total}`.
The pipeline has the settings of the repository's `tensorrt_llm` model.
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
    pipeline = genai.ContinuousBatchingPipeline(
        repository / parameters["gpt_model_path"],
        scheduler,
        "CPU",
        json.loads(parameters["plugin_properties"]),
    )
    print("ready", flush=True)
    key = 0
    for line in sys.stdin:
        result = _round(pipeline, json.loads(line), key)
        key += len(result["ttft"])
        print(json.dumps(result), flush=True)


def _round(pipeline: Any, order: dict[str, Any], key: int) -> dict[str, Any]:
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = order["tokens"]
    waiting = list(order["prompts"])[::-1]
    running: list[tuple[Any, float, list[int]]] = []
    ttft: list[float] = []
    tokens = 0
    started = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < order["concurrency"]:
            prompt = ov.Tensor(np.asarray([waiting.pop()], dtype=np.int64))
            running.append((pipeline.add_request(key, prompt, config), time.perf_counter(), []))
            key += 1
        pipeline.step()
        still = []
        for handle, sent, got in running:
            while handle.can_read():
                for output in handle.read().values():
                    if not got:
                        ttft.append(time.perf_counter() - sent)
                    got += output.generated_ids
            if handle.get_status() == genai.GenerationStatus.RUNNING:
                still.append((handle, sent, got))
            else:
                tokens += len(got)
        running = still
    return {"seconds": time.perf_counter() - started, "ttft": ttft, "tokens": tokens}


if __name__ == "__main__":
    main()
