"""The CPU repository behind a real Triton, asked by real clients; transformers says what is right."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import yaml
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from deploy.client import Chunk, Client, Summary
from deploy.server import TritonServer
from toolchain.errors import LlmbuildError

pytestmark = pytest.mark.triton

PATIENCE_S = 60.0  # a request that has not ended by then hangs
BATCH = 4
FLOATS = {"temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"}
FLOATS |= {"runtime_top_p", "top_p"}
BOOLS = {"streaming", "stream", "stop", "return_log_probs", "exclude_input_in_output", "return_perf_metrics"}


@dataclass
class Reply:
    """What one request got."""

    responses: list[dict[str, np.ndarray]] = field(default_factory=list)
    error: str | None = None

    def tokens(self, index: int = 0) -> list[int]:
        """All output ids of one sequence."""
        if len(self.responses) == 1 and "batch_index" not in self.responses[0]:
            ids, lengths = self.responses[0]["output_ids"], self.responses[0]["sequence_length"]
            return ids.reshape(-1, ids.shape[-1])[index][: lengths.flat[index]].tolist()
        mine = [r for r in self.responses if int(r.get("sequence_index", np.zeros(1)).flat[0]) == index]
        return [token for response in mine for token in response["output_ids"].flat]

    @property
    def text(self) -> str:
        return "".join(r["text_output"].flat[0].decode() for r in self.responses if "text_output" in r)

    @property
    def finish_reason(self) -> str:
        return self.responses[-1]["finish_reason"].flat[0].decode()


class Call:
    """One request on a stream of its own."""

    def __init__(self, endpoint: str, model: str, request_id: str = "", **values: Any) -> None:
        self.reply = Reply()
        self.started = threading.Event()
        self._done = threading.Event()
        self._client = grpc.InferenceServerClient(endpoint)
        self._client.start_stream(self._receive)
        inputs = [_tensor(name, value) for name, value in values.items()]
        self._client.async_stream_infer(
            model, inputs, request_id=request_id, enable_empty_final_response=True
        )

    def _receive(self, result: Any, error: InferenceServerException | None) -> None:
        if error is not None:
            self.reply.error = error.message()  # a stream does not carry the status
            self._done.set()
            return
        response = result.get_response()
        outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
        if outputs:
            self.reply.responses.append(outputs)
            self.started.set()
        if response.parameters["triton_final_response"].bool_param:
            self._done.set()

    def wait(self, patience_s: float = PATIENCE_S) -> Reply:
        assert self._done.wait(patience_s), "the request hangs"
        self._client.close()
        return self.reply

    def vanish(self) -> None:
        """Break the connection off."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


def _tensor(name: str, value: Any) -> grpc.InferInput:
    if isinstance(value, np.ndarray):
        array = value
    elif isinstance(value, str | bytes):
        array = np.array([[value]], dtype=object)
    elif isinstance(value, list) and value and isinstance(value[0], str):
        array = np.array([value], dtype=object)
    else:
        kind: Any = np.int32
        if name in FLOATS:
            kind = np.float32
        elif name in BOOLS:
            kind = bool
        elif name == "seed":
            kind = np.uint64
        array = np.array([value if isinstance(value, list) else [value]], dtype=kind)
    tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


class Service:
    """A server and what the tests ask of it."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server

    def call(self, prompt: list[int], max_tokens: int, *, request_id: str = "", **values: Any) -> Call:
        """Token ids straight to the engine's model."""
        given = {"input_ids": prompt, "input_lengths": len(prompt), "request_output_len": max_tokens}
        return Call(self.server.endpoints.grpc, "tensorrt_llm", request_id, **(given | values))

    def ask(self, prompt: list[int], max_tokens: int, **values: Any) -> Reply:
        return self.call(prompt, max_tokens, **values).wait()

    def say(self, text: str | bytes, max_tokens: int, model: str = "ensemble", **values: Any) -> Reply:
        """Text to `ensemble` or `tensorrt_llm_bls`."""
        endpoint = self.server.endpoints.grpc
        return Call(endpoint, model, text_input=text, max_tokens=max_tokens, **values).wait()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        url = f"{self.server.endpoints.http}/v2/models/{path}"
        try:
            with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextlib.contextmanager
def serve(repository: Path) -> Iterator[Service]:
    with TritonServer.start(repository, exit_timeout_s=8) as server:
        yield Service(server)


@pytest.fixture(scope="module")
def service(render: Callable[..., Path]) -> Iterator[Service]:
    # The cache holds one sequence of the longest kind: two cannot run at once.
    with serve(render(max_batch_size=BATCH, max_tokens_in_paged_kv_cache=4096, max_queue_size=24)) as running:
        yield running


def prompts_of(tiny_model: Any) -> list[list[int]]:
    texts = [
        "def",
        "import os\nimport",
        "class Tiny: a model of many words " * 3,
        "x",
        "return [f(x) for x in",
    ]
    return [tiny_model.tokenizer.encode(text).ids for text in texts]


def test_concurrent_greedy_output_is_that_of_transformers(service: Service, tiny_model: Any) -> None:
    lengths = [3, 40, 17, 64, 28, 9, 33, 1]
    wanted = list(zip(prompts_of(tiny_model) * 2, lengths, strict=False))
    calls = [service.call(prompt, n, streaming=index % 2 == 0) for index, (prompt, n) in enumerate(wanted)]
    for call, (prompt, n) in zip(calls, wanted, strict=True):
        assert call.wait().tokens() == tiny_model.greedy(prompt, n)


def test_text_through_ensemble_and_bls_in_batch_and_in_stream(service: Service, tiny_model: Any) -> None:
    prompt = tiny_model.tokenizer.encode("import os").ids
    expected = tiny_model.tokenizer.decode(tiny_model.greedy(prompt, 30))
    for model in ("ensemble", "tensorrt_llm_bls"):
        for stream in (False, True):
            reply = service.say("import os", 30, model, stream=stream)
            assert reply.error is None
            assert reply.text == expected


def test_http_generate_and_generate_stream(service: Service, tiny_model: Any) -> None:
    body = {"text_input": "import os", "max_tokens": 12}
    status, whole = service.post("ensemble/generate", body)
    assert status == 200
    status, stream = service.post("ensemble/generate_stream", body | {"stream": True})
    assert status == 200
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line]
    assert "".join(event["text_output"] for event in events) == json.loads(whole)["text_output"]
    assert events[-1]["finish_reason"] == "length"
    assert service.post("ensemble/generate", body | {"max_tokens": 0})[0] == 400


def test_input_in_output(service: Service, tiny_model: Any) -> None:
    prompt = tiny_model.tokenizer.encode("import os").ids
    reply = service.ask(prompt, 6, exclude_input_in_output=False)
    assert reply.tokens() == prompt + tiny_model.greedy(prompt, 6)
    assert reply.text.startswith("import os")


NAN = float("nan")
MANY_STOP_WORDS = np.tile(np.arange(1, 10_001, dtype=np.int32), (1, 2, 1))
BAD = [
    ({"request_output_len": 0}, "must be 1 or more"),
    ({"request_output_len": -3}, "must be 1 or more"),
    ({"request_output_len": 4095}, "max_seq_len, which is 4096"),
    ({"temperature": NAN}, "temperature is nan: must be a finite number"),
    ({"temperature": -0.5}, "temperature is -0.5: must be 0 or more"),
    ({"runtime_top_p": 1.5}, r"runtime_top_p \(top_p\) is 1.5: must be 0 \(off\) to 1"),
    ({"runtime_top_k": -2}, r"runtime_top_k \(top_k\) is -2"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0: must be above 0"),
    ({"presence_penalty": NAN}, "presence_penalty is nan"),
    ({"frequency_penalty": 3.0}, "frequency_penalty is 3.0: must be -2 to 2"),
    ({"min_tokens": 9}, "min_tokens is 9"),
    ({"beam_width": 4}, "beam search is not supported"),
    ({"end_id": 100_000}, "end_id is 100000: the vocabulary has tokens 0 to"),
    ({"num_return_sequences": 1_000_000}, "num_return_sequences is 1000000"),
    ({"input_lengths": 77}, r"input_lengths \(tokens of text_input\) is 77: input_ids has 3 tokens"),
    ({"input_lengths": 0}, "the prompt is empty"),
    ({"input_ids": [1, 1_000_000, 2]}, r"\(text_input\) is 1000000: the vocabulary has tokens 0 to"),
    ({"input_ids": [1, -1, 2]}, r"input_ids \(text_input\) is -1"),
    ({"stop_words_list": MANY_STOP_WORDS}, "10000 stop words in 10000"),
    ({"bad_words_list": np.ones((1, 2, 1), np.int32)}, "this engine does not support bad words"),
    ({"embedding_bias": np.ones((1, 600), np.float32)}, "this engine does not support embedding bias"),
    ({"draft_input_ids": [5]}, "this engine does not support draft tokens"),
    ({"lora_task_id": np.zeros((1, 1), np.uint64)}, "this engine does not support LoRA adapters"),
    ({"guided_decoding_guide": "{"}, "guided_decoding_guide_type is missing"),
    ({"guided_decoding_guide_type": "json"}, "this model was built without engine.guided_decoding"),
    ({"prompt_embedding_table": np.ones((1, 1, 8), np.float16)}, "does not support prompt tables"),
]  # fmt: skip


def test_bad_requests_get_errors_and_do_not_disturb_the_others(service: Service, tiny_model: Any) -> None:
    prompt = prompts_of(tiny_model)[1]
    good = [service.call(prompt, 120, streaming=True, end_id=-1) for _ in range(2)]
    bad = [service.call(**({"prompt": [1, 2, 3], "max_tokens": 4} | values)) for values, _ in BAD]
    for call, (_, message) in zip(bad, BAD, strict=True):
        reply = call.wait()
        assert reply.responses == []
        assert re.search(message, str(reply.error))
    first, second = (call.wait() for call in good)
    assert first.error is None
    assert len(first.tokens()) == 120
    assert first.tokens() == second.tokens()
    expected = tiny_model.greedy(prompt, 40)
    assert first.tokens()[: len(expected)] == expected


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("", {}, "text_input is empty"),
        (b"caf\xe9", {}, "text_input is not UTF-8: byte 3"),
        ("a b " * 3000, {}, "(tokens of text_input) is 6001: a prompt may have 4095"),
        ("a", {"max_tokens": -1}, "must be 1 or more"),
        ("a", {"stop_words": ["word"] * 10_000}, "(stop_words): 10000 stop words in"),
        ("a", {"stop_words": "word\rword" * 20_000}, "(stop_words): 1 stop words in"),
        ("a", {"bad_words": ["word"]}, "(bad_words): this engine does not support bad words"),
        ("a", {"top_p": NAN, "top_k": 5}, "runtime_top_p (top_p) is nan"),
    ],
)
@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_bad_text_requests(
    service: Service, model: str, text: str | bytes, values: dict[str, Any], message: str
) -> None:
    reply = service.say(**({"text": text, "max_tokens": 4, "model": model} | values))
    assert message in str(reply.error)


def test_one_bad_text_among_good_ones(service: Service, tiny_model: Any) -> None:
    expected = tiny_model.tokenizer.decode(tiny_model.greedy(tiny_model.tokenizer.encode("import os").ids, 9))
    with ThreadPoolExecutor(8) as pool:
        texts = ["import os", "", b"\xff", "import os"] * 4
        replies = list(pool.map(lambda text: service.say(text, 9), texts))
    assert [reply.error is None for reply in replies] == [True, False, False, True] * 4
    assert {reply.text for reply in replies if reply.error is None} == {expected}


def test_batch_of_prompts_in_one_request(service: Service, tiny_model: Any) -> None:
    texts = ["import os", "class Tiny:", "x"]
    batch = np.array([[text] for text in texts], dtype=object)
    reply = service.say(batch, np.full((3, 1), 10, np.int32))
    assert reply.error is None
    (response,) = reply.responses
    prompts = [tiny_model.tokenizer.encode(text).ids for text in texts]
    expected = [tiny_model.tokenizer.decode(tiny_model.greedy(prompt, 10)) for prompt in prompts]
    assert [text.decode() for text in response["text_output"].flat] == expected

    ids = np.full((3, max(map(len, prompts))), tiny_model.end_id, np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    columns = {
        "input_ids": ids,
        "input_lengths": np.array([[len(prompt)] for prompt in prompts], np.int32),
        "request_output_len": np.array([[4], [10], [7]], np.int32),
        "streaming": np.ones((3, 1), bool),
    }
    streamed = Call(service.server.endpoints.grpc, "tensorrt_llm", **columns).wait()
    for row, (prompt, n) in enumerate(zip(prompts, (4, 10, 7), strict=True)):
        mine = [r["output_ids"].flat for r in streamed.responses if r["batch_index"].flat[0] == row]
        assert [token for tokens in mine for token in tokens] == tiny_model.greedy(prompt, n)


def test_seeds_and_several_sequences(service: Service, tiny_model: Any) -> None:
    prompt = prompts_of(tiny_model)[1]
    sampling = {"runtime_top_k": 50, "temperature": 1.5, "end_id": -1}
    calls = [service.call(prompt, 24, seed=seed, **sampling) for seed in (1, 2, 1)]
    one, two, again = (call.wait().tokens() for call in calls)
    assert one == again
    assert one != two
    several = service.ask(prompt, 24, seed=1, num_return_sequences=2, **sampling)
    assert several.responses[0]["output_ids"].shape == (1, 2, 24)
    assert [several.tokens(0), several.tokens(1)] == [one, two]
    streamed = service.ask(prompt, 24, seed=1, num_return_sequences=2, streaming=True, **sampling)
    assert [streamed.tokens(0), streamed.tokens(1)] == [one, two]


def metrics_of(service: Service) -> dict[str, float]:
    """Every sample of the engine's model: name and labels, without the model's -> value."""
    with urllib.request.urlopen(service.server.endpoints.metrics, timeout=10) as page:
        lines = page.read().decode().splitlines()
    samples = [line.rsplit(" ", 1) for line in lines if 'model="tensorrt_llm"' in line]
    named = re.compile(r'(model="tensorrt_llm",?|version="1",?)')
    return {named.sub("", name).replace(",}", "}").replace("{}", ""): float(value) for name, value in samples}


def test_prometheus_sees_what_happens(service: Service, tiny_model: Any) -> None:
    prompt = prompts_of(tiny_model)[1]
    before = metrics_of(service)
    assert before['nv_trt_llm_request_metrics{request_type="max"}'] == BATCH
    service.ask(prompt, 9, end_id=-1)
    service.ask(prompt, 7, end_id=-1, streaming=True)
    service.ask([], 7)
    after = metrics_of(service)
    change = {name: after[name] - before[name] for name in before if after[name] != before[name]}
    assert change["llmbuild_prompt_tokens_total"] == 2 * len(prompt)
    assert change["llmbuild_generation_tokens_total"] == 16
    assert change['llmbuild_sequences_total{finish_reason="length"}'] == 2
    assert change['llmbuild_sequences_total{finish_reason="refused"}'] == 1
    for name in ("time_to_first_token", "time_per_output_token", "request_duration"):
        assert change[f"gen_ai_server_{name}_seconds_count"] == 2
        assert change[f"gen_ai_server_{name}_seconds_sum"] > 0
    assert change["llmbuild_queue_time_seconds_count"] == 2
    blocks = {kind: after[f'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="{kind}"}}']
              for kind in ("used", "free", "max", "tokens_per")}  # fmt: skip
    assert blocks["used"] + blocks["free"] == blocks["max"] > 0
    assert blocks["tokens_per"] == 32
    assert after['nv_trt_llm_request_metrics{request_type="active"}'] == 0


def test_dashboard_and_alerts_ask_for_metrics_that_there_are(service: Service) -> None:
    monitoring = Path(__file__).parents[2] / "deploy/monitoring"
    panels = json.loads((monitoring / "grafana-dashboard.json").read_text())["panels"]
    rules = yaml.safe_load((monitoring / "prometheus-rules.yaml").read_text())["groups"][0]["rules"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [rule["expr"] for rule in rules]
    with urllib.request.urlopen(service.server.endpoints.metrics, timeout=10) as page:
        shown = set(re.findall(r"^(\w+)\{([^}]*)\}", page.read().decode(), re.MULTILINE))
    names, labels = {name for name, _ in shown}, " ".join(label for _, label in shown)
    for expression in asked:
        used = re.findall(r"\b((?:nv|gen_ai|llmbuild)_\w+)", expression)
        assert used, expression
        assert set(used) <= names, expression
        for kind, values in re.findall(r'(\w+)=~?"([\w|]+)"', expression):
            for value in values.split("|"):
                assert f'{kind}="{value}"' in labels, expression


def test_top_k_samples_among_the_k_likeliest(service: Service, tiny_model: Any) -> None:
    import torch

    prompt = prompts_of(tiny_model)[0]
    tokens = service.ask(prompt, 32, runtime_top_k=3, temperature=2.0, seed=11, end_id=-1).tokens()
    with torch.no_grad():
        logits = tiny_model.reference(torch.tensor([prompt + tokens])).logits[0]
    likeliest = logits[len(prompt) - 1 : -1].topk(3).indices.tolist()
    ranks = [best.index(token) for best, token in zip(likeliest, tokens, strict=True)]
    assert set(ranks) == {0, 1, 2}


def test_log_probs_are_those_of_the_model(service: Service, tiny_model: Any) -> None:
    import torch

    prompt = prompts_of(tiny_model)[1]
    reply = service.ask(prompt, 12, return_log_probs=True, end_id=-1)
    tokens = reply.tokens()
    with torch.no_grad():
        logits = tiny_model.reference(torch.tensor([prompt + tokens])).logits[0]
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    got = reply.responses[0]["output_log_probs"]
    assert got.shape == (1, 1, 12)
    np.testing.assert_allclose(got[0, 0], expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(reply.responses[0]["cum_log_probs"], [[expected.sum()]], atol=1e-3)
    assert "output_log_probs" not in service.ask(prompt, 2).responses[0]


def test_repetition_penalty_is_that_of_transformers(service: Service, tiny_model: Any) -> None:
    import torch

    prompt = prompts_of(tiny_model)[2]
    expected = tiny_model.reference.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, repetition_penalty=1.7, pad_token_id=0
    )[0, len(prompt) :].tolist()
    reply = service.ask(prompt, 24, repetition_penalty=1.7)
    assert reply.tokens() == [token for token in expected if token != tiny_model.end_id]


def test_end_id_and_min_tokens(service: Service, tiny_model: Any) -> None:
    prompt = prompts_of(tiny_model)[1]
    free = tiny_model.greedy(prompt, 20)
    end_id = free[5]
    reply = service.ask(prompt, 20, end_id=end_id)
    assert reply.tokens() == free[: free.index(end_id)]
    assert reply.finish_reason == "stop"
    later = service.ask(prompt, 20, end_id=end_id, min_tokens=10)
    assert len(later.tokens()) >= 10
    assert end_id not in later.tokens()


def test_stop_words_end_the_text_and_never_show(service: Service, tiny_model: Any) -> None:
    prompt = prompts_of(tiny_model)[1]
    text = tiny_model.tokenizer.decode(prompt)
    ids = tiny_model.greedy(prompt, 30)
    free = tiny_model.tokenizer.decode(ids)
    clean = [i for i in range(4, len(free) - 6) if "\N{REPLACEMENT CHARACTER}" not in free[i : i + 5]]
    stop = free[clean[0] : clean[0] + 5]  # cut without regard to tokens
    for stream in (False, True):
        for model in ("ensemble", "tensorrt_llm_bls"):
            words = ["never said", stop]
            reply = service.say(text, 30, model, stream=stream, stop_words=words)
            assert reply.text == free[: free.index(stop)]
            assert reply.finish_reason == "stop"
    packed = np.array([[[*ids[7:9]], [2, -1]]], np.int32)
    assert service.ask(prompt, 30, stop_words_list=packed).tokens() == ids[: _find(ids, ids[7:9])]


def test_stop_words_are_taken_literally(service: Service) -> None:
    # At this temperature all tokens are about as likely: every character turns up, always in the same order.
    sampling = {"max_tokens": 500, "temperature": 50.0, "seed": 3, "end_id": -1}
    with Client(service.server.endpoints.grpc) as client:
        free = client.complete("def", **sampling)
        comma = free.index(",", 1)
        for word in (",", '"', "\n", free[comma - 1 : comma + 2], free[comma : comma + 2]):
            assert free.count(word)
            for stream in (False, True):
                text = client.complete("def", stream=stream, stop_words=[word], **sampling)
                assert text == free[: free.index(word)]
        assert client.complete("def", stop_words=["a\rb", '"', ""], **sampling) == free[: free.index('"')]
        assert client.complete("def", stop_words=["not\rsaid"], **sampling) == free
        with pytest.raises(
            LlmbuildError, match=r"stop_words.*: 1 stop words in \d+ tokens; at most"
        ) as refused:
            client.complete("def", stop_words=["x" * 200_000], **sampling)
        assert "Traceback" not in str(refused.value)


def test_a_temperature_alone_samples_and_zero_is_greedy(service: Service, tiny_model: Any) -> None:
    greedy = tiny_model.tokenizer.decode(tiny_model.greedy(tiny_model.tokenizer.encode("def").ids, 40))
    with Client(service.server.endpoints.grpc) as client:
        assert client.complete("def", max_tokens=40, temperature=0) == greedy
        assert client.complete("def", max_tokens=40, temperature=3.0, top_k=1) == greedy
        one, two, again = (
            client.complete("def", max_tokens=40, temperature=3.0, seed=seed, end_id=-1) for seed in (1, 2, 1)
        )
    assert one == again
    assert len({one, two, greedy}) == 3


def test_the_summary_counts_all_return_sequences(service: Service) -> None:
    with Client(service.server.endpoints.grpc) as client:
        for stream in (False, True):
            *_, summary = client.generate(
                "def", max_tokens=10, num_return_sequences=2, end_id=-1, stream=stream
            )
            assert isinstance(summary, Summary)
            assert summary.tokens == 20


def _find(tokens: list[int], part: list[int]) -> int:
    return next(i for i in range(len(tokens)) if tokens[i : i + len(part)] == part)


def test_abandoned_requests_free_the_cache(service: Service, tiny_model: Any) -> None:
    prompt = prompts_of(tiny_model)[0]
    # Each of these needs the whole cache and seconds of computing: were they not cancelled, the last
    # request would wait longer than the patience of this test.
    for _ in range(12):
        call = service.call(prompt, 4000, streaming=True, end_id=-1)
        assert call.started.wait(PATIENCE_S)
        call.vanish()
    for _ in range(12):
        script = {"text_input": "def", "max_tokens": 4000, "stream": True, "end_id": -1}
        call = Call(service.server.endpoints.grpc, "tensorrt_llm_bls", **script)
        assert call.started.wait(PATIENCE_S)
        call.vanish()
    whole_cache = 4096 - len(prompt)
    assert len(service.ask(prompt, whole_cache, end_id=-1).tokens()) == whole_cache


def test_abandoned_requests_of_an_ensemble_free_the_cache(service: Service, tiny_model: Any) -> None:
    # Each needs the whole cache and seconds of computing; the last request waits for all that run on.
    long = {"max_tokens": 4000, "end_id": -1}
    address = service.server.endpoints.grpc
    with Client(address) as client, Client(address) as second, ThreadPoolExecutor(24) as pool:

        def run_into(end: Client, timeout_s: float | None) -> None:
            with pytest.raises(LlmbuildError):
                list(end.generate("def", timeout_s=timeout_s, **long))

        running = client.generate("def", **long)
        assert isinstance(next(running), Chunk)
        closed = [pool.submit(run_into, second, None) for _ in range(12)]
        late = [pool.submit(run_into, client, 1.0) for _ in range(12)]
        for ended in late:
            ended.result()
        second.close()
        for ended in closed:
            ended.result()
        running.close()  # type: ignore[attr-defined]
    prompt = prompts_of(tiny_model)[0]
    first = tiny_model.greedy(prompt, 1)[0]
    reply = service.call(prompt, 4096 - len(prompt), end_id=first).wait(patience_s=15)
    assert reply.error is None
    assert reply.finish_reason == "stop"


def test_stop_request_ends_a_request_under_way(service: Service, tiny_model: Any) -> None:
    prompt = prompts_of(tiny_model)[0]
    other = service.call(prompt, 40, request_id="other")
    call = service.call(prompt, 3900, request_id="long", streaming=True, end_id=-1)
    assert call.started.wait(PATIENCE_S)
    assert service.ask(prompt, 1, request_id="long", stop=True).responses == []
    reply = call.wait()
    assert reply.finish_reason == "cancelled"
    assert 0 < len(reply.tokens()) < 3900
    assert other.wait().tokens() == tiny_model.greedy(prompt, 40)


def test_a_full_queue_refuses_at_once_and_serves_the_rest(service: Service, tiny_model: Any) -> None:
    prompt = prompts_of(tiny_model)[0]
    # One after another, as each needs the whole cache; together they last until all others have arrived.
    heads = []
    for _ in range(4):
        heads.append(service.call(prompt, 4000, streaming=True, end_id=-1, request_id="head"))
        assert heads[0].started.wait(PATIENCE_S)
    calls = [service.call(prompt, 200) for _ in range(40)]
    deadline = time.monotonic() + PATIENCE_S
    while len(refused := [call for call in calls if call.reply.error is not None]) < 40 - 24 - BATCH:
        assert time.monotonic() < deadline, "nothing is refused while the heads of the queue run"
        time.sleep(0.01)
    status, answer = service.post("ensemble/generate", {"text_input": "x", "max_tokens": 5})
    assert status in (400, 503)
    assert "the queue is full" in answer
    service.ask(prompt, 1, request_id="head", stop=True)
    # On a slow machine the first heads may have ended by themselves.
    assert {head.wait().finish_reason for head in heads} <= {"cancelled", "length"}
    replies = [call.wait() for call in calls]
    refused = [reply for reply in replies if reply.error is not None]
    assert 40 - 24 - BATCH <= len(refused) <= 40 - 24 + 3
    assert all("the queue is full" in str(reply.error) for reply in refused)
    expected = tiny_model.greedy(prompt, 10)
    assert all(reply.tokens()[: len(expected)] == expected for reply in replies if reply.error is None)


def test_perf_metrics_are_in_order(service: Service, tiny_model: Any) -> None:
    reply = service.ask(prompts_of(tiny_model)[0], 5, return_perf_metrics=True, end_id=-1)
    names = ("arrival", "first_scheduled", "first_token", "last_token")
    times = [int(reply.responses[0][f"{name}_time_ns"].flat[0]) for name in names]
    assert times == sorted(times)


def engine_pid(repository: Path) -> int:
    """The engine process whose Triton model lives in `repository`."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(repository / "tensorrt_llm/1/engine.py").encode() in (entry / "cmdline").read_bytes():
                return int(entry.name)
    raise AssertionError("no engine process")


def test_a_killed_engine_ends_its_requests_and_comes_back(
    render: Callable[..., Path], tiny_model: Any
) -> None:
    repository = render(max_batch_size=8, accumulate_tokens=True)
    prompt = prompts_of(tiny_model)[1]
    with serve(repository) as service:
        accumulated = service.say("import os", 10, "tensorrt_llm_bls", stream=True)
        texts = [response["text_output"].flat[0].decode() for response in accumulated.responses]
        expected = tiny_model.greedy(tiny_model.tokenizer.encode("import os").ids, 10)
        assert texts[-1] == tiny_model.tokenizer.decode(expected)
        assert [len(text) for text in texts] == sorted(len(text) for text in texts)

        calls = [service.call(prompt, 3000, streaming=index % 2 == 0, end_id=-1) for index in range(6)]
        script = {"text_input": "def", "max_tokens": 3000, "stream": True, "end_id": -1}
        calls.append(Call(service.server.endpoints.grpc, "tensorrt_llm_bls", **script))
        assert calls[0].started.wait(PATIENCE_S)
        assert calls[-1].started.wait(PATIENCE_S)
        os.kill(engine_pid(repository), signal.SIGKILL)
        replies = [call.wait() for call in calls]
        assert all("the engine process was ended by SIGKILL" in str(reply.error) for reply in replies[:6])
        assert "the engine failed in the middle" in str(replies[6].error)
        deadline = time.monotonic() + PATIENCE_S
        while (reply := service.ask(prompt, 20)).error is not None and time.monotonic() < deadline:
            assert "is being restarted" in str(reply.error)
            time.sleep(0.1)
        assert reply.tokens() == tiny_model.greedy(prompt, 20)

        # Stopped with requests in flight, the server lets them end.
        calls = [service.call(prompt, 1500, streaming=index % 2 == 0, end_id=-1) for index in range(4)]
        assert calls[0].started.wait(PATIENCE_S)
        stopping = threading.Thread(target=service.server.stop)
        stopping.start()  # it also waits for clients to hang up
        for call in calls:
            reply = call.wait()
            assert reply.error is not None or len(reply.tokens()) == 1500
        stopping.join()
    with pytest.raises(AssertionError, match="no engine process"):
        engine_pid(repository)


def test_without_streaming_and_with_preemption(render: Callable[..., Path], tiny_model: Any) -> None:
    """One response a request (plain HTTP infer works); a cache that is too small for all at once."""
    repository = render(
        streaming=False,
        max_seq_len=160,
        max_batch_size=BATCH,
        max_tokens_in_paged_kv_cache=192,
        batch_scheduler_policy="max_utilization",
        enable_kv_cache_reuse=False,
    )
    prompts = prompts_of(tiny_model)
    with serve(repository) as service:

        def infer(prompt: list[int]) -> list[int]:
            with grpc.InferenceServerClient(service.server.endpoints.grpc) as client:
                values = {"input_ids": prompt, "input_lengths": len(prompt), "request_output_len": 90}
                inputs = [_tensor(name, value) for name, value in (values | {"end_id": -1}).items()]
                result = client.infer("tensorrt_llm", inputs, client_timeout=PATIENCE_S)
            return result.as_numpy("output_ids")[0, 0].tolist()

        alone = [infer(prompt) for prompt in prompts]
        with ThreadPoolExecutor(10) as pool:
            together = list(pool.map(infer, prompts * 4))
        assert together == alone * 4
        body = {"text_input": "import os", "max_tokens": 3}
        assert service.post("ensemble/generate", body)[0] == 200
        assert service.post("tensorrt_llm_bls/generate", body)[0] == 200
        status, answer = service.post("ensemble/generate", body | {"stream": True})
        assert (status, "built without streaming" in answer) == (400, True)
