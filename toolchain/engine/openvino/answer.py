"""Greedy answers of a finished repository's engine, without a server.

    python -m toolchain.engine.openvino.answer REPOSITORY

Reads `{"prompts": [[token, ...], ...], "max_tokens": n, "eos": [token, ...]}` from stdin and writes
`{"answers": [[token, ...], ...]}` as the last line of stdout. A process of its own: an engine that crashes
takes nothing with it, and its memory is given back. The engine has the properties that the server gives it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolchain.engine.openvino.quiet import disable_telemetry
from toolchain.errors import GateError

_BLOCK = 32
_BLOCKS = 64  # a small cache: a few short prompts
_TIMEOUT = 1800


def answer(
    repository: Path, prompts: Sequence[Sequence[int]], max_tokens: int, eos: Sequence[int]
) -> list[list[int]]:
    """Run `main` in a child process. Raises GateError when the engine does not start or does not answer."""
    order = {"prompts": [list(prompt) for prompt in prompts], "max_tokens": max_tokens, "eos": list(eos)}
    command = [sys.executable, "-m", "toolchain.engine.openvino.answer", str(repository)]
    try:
        done = subprocess.run(
            command, input=json.dumps(order), capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise _failed(f"no answer within {_TIMEOUT // 60} minutes", "") from None
    if done.returncode != 0:
        raise _failed(f"its process ended with {done.returncode}", done.stderr)
    answers: list[list[int]] = json.loads(done.stdout.splitlines()[-1])["answers"]
    return answers


def _failed(why: str, log: str) -> GateError:
    last = "\n       ".join(log.strip().splitlines()[-5:])
    return GateError(
        "the engine does not answer",
        where="gates.smoke",
        why=f"{why}\n       {last}" if last else why,
        fix="`llmbuild doctor` looks at the packages; build again with --force engine",
    )


def main() -> None:
    """See the module."""
    import numpy as np
    import openvino as ov

    disable_telemetry()
    import openvino_genai as genai

    from deploy.pbtxt import read_config

    repository, order = Path(sys.argv[1]), json.load(sys.stdin)
    config = read_config(repository / "tensorrt_llm" / "config.pbtxt")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    scheduler = genai.SchedulerConfig()
    longest = max(map(len, order["prompts"])) + order["max_tokens"]
    scheduler.num_kv_blocks = max(_BLOCKS, len(order["prompts"]) * (longest // _BLOCK + 2))
    pipeline = genai.ContinuousBatchingPipeline(
        repository / parameters["gpt_model_path"],
        scheduler,
        "CPU",
        json.loads(parameters["plugin_properties"]),
    )
    handles: list[Any] = []
    for number, prompt in enumerate(order["prompts"]):
        generation = genai.GenerationConfig()
        generation.max_new_tokens = order["max_tokens"]
        if order["eos"]:
            generation.set_eos_token_id(order["eos"][0])
            generation.stop_token_ids = set(order["eos"])
        else:
            generation.ignore_eos = True
        ids = ov.Tensor(np.asarray([prompt], dtype=np.int64))
        handles.append(pipeline.add_request(number, ids, generation))
    answers: list[list[int]] = [[] for _ in handles]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    for handle, tokens in zip(handles, answers, strict=True):
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
    print(json.dumps({"answers": answers}))


if __name__ == "__main__":
    main()
