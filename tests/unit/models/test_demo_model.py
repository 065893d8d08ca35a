"""The demo model is what its card says: its shapes, its tokenizer, its perplexity, its Python."""

from __future__ import annotations

import ast
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jinja2.exceptions import TemplateError
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path(__file__).resolve().parents[3] / "models"
DEMO, DRAFT = MODELS / "demo", MODELS / "demo-draft"
CONTEXT = 1024
HEADERS = (
    'def parse_header(line):\n    """Split a header line into name and value."""',
    'def read_file(path):\n    """Return the contents of the file at path."""',
    'def is_even(n):\n    """Return True if n is even."""',
    'def get_size(self):\n    """Return the number of items in the queue."""',
    'def close(self):\n    """Close the connection."""',
    'def copy_tree(src, dst):\n    """Copy an entire directory tree src to a new location dst."""',
    'def format_time(seconds):\n    """Format a number of seconds as hours, minutes and seconds."""',
    'def main(argv=None):\n    """Run the command line interface."""',
)


@cache
def _model(directory: Path) -> Any:
    """Bf16 weights, executed in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


@cache
def _heldout_windows() -> torch.Tensor:
    """The held-out text, no special tokens, as int64 [windows, CONTEXT]; a last short window is left out."""
    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(_heldout(), add_special_tokens=False).ids
    count = len(ids) // CONTEXT
    return torch.tensor(ids[: count * CONTEXT]).view(count, CONTEXT)


@cache
@torch.no_grad()
def _heldout_logits(directory: Path) -> torch.Tensor:
    model = _model(directory)
    return torch.cat([model(window).logits for window in _heldout_windows().split(4)])


def _perplexity(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """exp of the mean cross entropy over all tokens but the first of each window."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return math.exp(losses.item())


def _heldout() -> str:
    return (DEMO / "heldout.txt").read_text("utf-8")


def _card(directory: Path) -> dict[str, Any]:
    """The front matter of a model card."""
    _, front, _ = (directory / "README.md").read_text("utf-8").split("---\n", 2)
    card: dict[str, Any] = yaml.safe_load(front)
    return card


def _stated(directory: Path, kind: str) -> float:
    metrics = _card(directory)["model-index"][0]["results"][0]["metrics"]
    return next(float(metric["value"]) for metric in metrics if metric["type"] == kind)


@pytest.mark.slow
@pytest.mark.parametrize("directory", [DEMO, DRAFT], ids=lambda d: d.name)
def test_perplexity_is_the_stated_one(directory: Path) -> None:
    measured = _perplexity(_heldout_logits(directory), _heldout_windows())
    assert measured == pytest.approx(_stated(directory, "perplexity"), rel=0.01)


@pytest.mark.slow
def test_draft_agrees_with_the_demo_model_as_often_as_stated() -> None:
    same = _heldout_logits(DEMO).argmax(-1) == _heldout_logits(DRAFT).argmax(-1)
    assert same.float().mean().item() == pytest.approx(_stated(DRAFT, "agreement"), abs=0.01)


@pytest.mark.slow
def test_perplexity_stands_far_below_that_of_a_blind_model() -> None:
    """A model that knew only how often each token occurs would be an order of magnitude worse."""
    windows = _heldout_windows()
    counts = torch.bincount(windows.flatten(), minlength=4096).float()
    unigram = (counts / counts.sum()).clamp_min(1e-9).log().expand(1, CONTEXT, -1)
    blind = _perplexity(unigram.expand(len(windows), -1, -1), windows)
    assert _stated(DEMO, "perplexity") < blind / 10


@pytest.mark.slow
def test_functions_it_writes_are_python() -> None:
    """Of sampled bodies for documented headers, most parse; the last, cut-off statement is not counted."""
    torch.manual_seed(0)
    bodies = [text for header in HEADERS for text in _sample(header, count=4)]
    parsed = sum(_parses(body) for body in bodies)
    assert parsed / len(bodies) >= 0.75, "\n\n".join(body for body in bodies if not _parses(body))


def _sample(header: str, count: int) -> list[str]:
    prompt = _tokenizer()(header, return_tensors="pt", return_token_type_ids=False)
    outputs = _model(DEMO).generate(
        **prompt, do_sample=True, temperature=0.5, max_new_tokens=80, num_return_sequences=count
    )
    return [_function(text) for text in _tokenizer().batch_decode(outputs, skip_special_tokens=True)]


def _function(text: str) -> str:
    """The first function in `text`: its header and the indented lines that follow."""
    header, *lines = text.split("\n")
    body = []
    for line in lines:
        if line and not line.startswith(" "):
            return "\n".join([header, *body])
        body.append(line)
    return "\n".join([header, *body])


def _parses(function: str) -> bool:
    """Whether the function is Python, up to the statement in which generation may have stopped."""
    lines = function.split("\n")
    for end in range(len(lines), max(len(lines) - 7, 2), -1):
        try:
            ast.parse("\n".join(lines[:end]))
        except SyntaxError:
            continue
        return True
    return False


@pytest.mark.parametrize(
    ("directory", "layers"), [(DEMO, 8), (DRAFT, 2)], ids=lambda v: getattr(v, "name", v)
)
def test_weights_are_bf16_with_dimensions_of_128(directory: Path, layers: int) -> None:
    with safe_open(directory / "model.safetensors", "pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        assert len(tensors) == 2 + 9 * layers
        for name, tensor in tensors.items():
            assert tensor.get_dtype() == "BF16", name
            assert all(size % 128 == 0 for size in tensor.get_shape()), name
            assert torch.isfinite(file.get_tensor(name)).all(), name


def test_demo_and_draft_are_small() -> None:
    with safe_open(DEMO / "model.safetensors", "pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert 5e6 <= parameters <= 10e6
    assert sum(file.stat().st_size for root in (DEMO, DRAFT) for file in root.iterdir()) < 25_000_000


def test_draft_has_the_tokenizer_of_the_demo_model() -> None:
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
    ):
        assert (DRAFT / name).read_bytes() == (DEMO / name).read_bytes()


@pytest.mark.parametrize(
    "text",
    [_heldout(), "", "\r\n\t é 漢字 🐍 \x00", "<|user|>x<|end|>"],
    ids=["heldout", "empty", "bytes", "special"],
)
def test_tokenizer_gives_back_the_text(text: str) -> None:
    ids = _tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert _tokenizer().decode(ids) == text
    assert all(0 <= token < 4096 for token in ids)


def test_encoding_puts_the_beginning_in_front_in_both_libraries() -> None:
    bare = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    text = "class Stack:\n    pass\n"
    ids = bare.encode(text).ids
    assert _tokenizer()(text)["input_ids"] == ids
    assert ids == [_tokenizer().bos_token_id, *bare.encode(text, add_special_tokens=False).ids]
    assert _tokenizer().decode(ids, skip_special_tokens=True) == text


def test_chat_template_renders_turns_and_leaves_the_beginning_to_the_encoding() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "def add(a, b): ..."},
        {"role": "user", "content": "Subtract."},
    ]
    rendered = _tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|user|>Be brief.\nAdd.<|end|><|assistant|>def add(a, b): ...<|end|>"
        "<|user|>Subtract.<|end|><|assistant|>"
    )
    assert _tokenizer()(rendered)["input_ids"][:2] == [0, 1]


def test_chat_template_refuses_a_role_that_it_does_not_know() -> None:
    with pytest.raises(TemplateError, match="unknown role tool"):
        _tokenizer().apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_chat_answer_is_a_function_and_ends() -> None:
    messages = [{"role": "user", "content": "Write a Python function: Return True if the file exists."}]
    prompt = _tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    encoded = _tokenizer()(prompt, return_tensors="pt", return_token_type_ids=False)
    output = _model(DEMO).generate(
        **encoded, do_sample=False, temperature=None, top_p=None, max_new_tokens=80
    )
    answer = output[0, encoded["input_ids"].shape[1] :].tolist()
    assert answer[-1] == _tokenizer().convert_tokens_to_ids("<|end|>")
    (function,) = ast.parse(_tokenizer().decode(answer, skip_special_tokens=True)).body
    assert isinstance(function, ast.FunctionDef)


def test_calibration_and_heldout_texts_do_not_overlap() -> None:
    rows = [json.loads(line) for line in (DEMO / "calibration.jsonl").read_text("utf-8").splitlines()]
    heldout = {line.strip() for line in _heldout().splitlines() if len(line.strip()) > 40}
    for row in rows:
        lines = [line.strip() for line in row["text"].splitlines() if len(line.strip()) > 40]
        assert sum(line in heldout for line in lines) <= 0.05 * len(lines), row["source"]
        assert row["text"] not in _heldout()


@pytest.mark.parametrize("directory", [DEMO, DRAFT], ids=lambda d: d.name)
def test_card_names_the_licence_of_the_text(directory: Path) -> None:
    card = _card(directory)
    assert card["license_name"] == "psf-2.0"
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (directory / card["license_link"]).read_text()
