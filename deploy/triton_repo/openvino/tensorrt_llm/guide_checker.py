"""A process that compiles guides with the engine's own library, so that a bad one harms nobody.

GenAI compiles a guide inside the step that first needs it; an error there loses every request in flight. Here
a tiny model with the same tokenizer takes that step. Each line of stdin is `{"kind": ..., "text": ...}`, each
line of stdout `{"error": null}` or the reason.

    python guide_checker.py DIRECTORY    the tiny model's
"""

from __future__ import annotations

import json
import re
import sys

# ruff: noqa: E402 -- telemetry must be off before openvino is imported: it would phone home
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import numpy as np
import openvino
import openvino_genai
from guided import structured_output


def main() -> None:
    """Answer line by line until stdin ends."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 4
    pipeline = openvino_genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU", {})
    prompt = openvino.Tensor(np.zeros((1, 1), dtype=np.int64))
    for line in sys.stdin:
        generation = openvino_genai.GenerationConfig()
        generation.max_new_tokens = 1
        generation.structured_output_config = structured_output(**json.loads(line))
        error = None
        try:
            pipeline.generate([prompt], [generation])
        except RuntimeError as problem:
            # xgrammar's messages begin with time and place of its source.
            error = re.split(r"\.cc:\d+: ", str(problem))[-1].strip() or "it cannot be compiled"
        print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    main()
