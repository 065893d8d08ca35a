"""What the engine asks of GenAI, in the very steps in which a seed drew other tokens without it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

SOURCES = Path(__file__).parents[2] / "deploy/triton_repo/openvino/tensorrt_llm"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine's modules, which inside Triton are neighbours with plain names."""
    monkeypatch.syspath_prepend(str(SOURCES))
    import engine
    import messages

    return engine, messages


def test_a_seed_draws_the_same_whoever_shares_the_step(tiny_model: Any, modules: Any) -> None:
    """Who comes while others run finds the prompt in the cache, and its logits have other last bits."""
    import openvino
    import openvino_genai

    from toolchain.engine.openvino import plugin_properties

    engine, messages = modules
    settings = messages.EngineSettings("", "", {}, 64, 8, 256, True, True, True, False, 0, True)
    config = openvino_genai.SchedulerConfig()
    config.num_kv_blocks, config.enable_prefix_caching = 64, True
    properties = plugin_properties("exact", "auto")
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(tiny_model.engine_dir), config, "CPU", properties
    )
    prompt = tiny_model.tokenizer.encode("import os\nimport").ids
    drawn = []
    for seed in range(10):
        handles = []
        for each in (seed, seed + 100, seed):
            sequence = messages.Sequence(
                prompt,
                max_tokens=12,
                min_tokens=0,
                end_ids=(),
                stop_words=(),
                sample=True,
                temperature=1.5,
                top_k=50,
                top_p=1.0,
                repetition_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                seed=each,
                log_probs=False,
                streaming=False,
                echo_text=False,
            )
            tokens = openvino.Tensor(np.array([prompt]))
            generation = engine._generation_config(sequence, settings)
            handles.append(pipeline.add_request(3 * seed + len(handles), tokens, generation))
            pipeline.step()
        while pipeline.has_non_finished_requests():
            pipeline.step()
        first, _, again = ([t for out in h.read_all() for t in out.generated_ids] for h in handles)
        assert first == again, seed
        drawn.append(first)
    assert len({tuple(tokens) for tokens in drawn}) == 10
