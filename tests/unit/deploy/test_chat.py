from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.chat import render_chat
from toolchain.errors import UsageError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'robot' %}{{ raise_exception('no robots') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
MESSAGES = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi"}]


def _tokenizer(directory: Path, *, template: str | None = TEMPLATE, adds_begin: bool = False) -> Path:
    from tokenizers import Tokenizer, models, processors

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "x": 2}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>"])
    if adds_begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "<unk>"}
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_renders_up_to_where_the_answer_begins(tmp_path: Path) -> None:
    prompt = render_chat(_tokenizer(tmp_path), MESSAGES)
    assert prompt == "<s><system>Be brief. <user>Hi<answer>"


def test_the_begin_token_is_not_written_twice(tmp_path: Path) -> None:
    prompt = render_chat(_tokenizer(tmp_path, adds_begin=True), MESSAGES)
    assert prompt == "<system>Be brief. <user>Hi<answer>"


def test_reads_the_template_from_its_own_file(tmp_path: Path) -> None:
    _tokenizer(tmp_path, template=None)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert render_chat(tmp_path, MESSAGES) == "Be brief. !"


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"this model has no chat template\n(.*\n)*  fix: leave out --chat"):
        render_chat(_tokenizer(tmp_path, template=None), MESSAGES)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer .*\n  why: there is no tokenizer_config\.json"):
        render_chat(tmp_path, MESSAGES)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (_tokenizer(tmp_path) / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="the tokenizer cannot be loaded"):
        render_chat(tmp_path, MESSAGES)


@pytest.mark.parametrize(
    ("template", "reason"),
    [(TEMPLATE, "no robots"), ("{% for %}", "Expected"), ("{{ messages.__class__.__mro__ }}", "unsafe")],
)
def test_what_the_template_refuses_is_told_and_nothing_escapes_it(
    tmp_path: Path, template: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=rf"the chat template refuses these messages\n  why: .*{reason}"):
        render_chat(_tokenizer(tmp_path, template=template), [{"role": "robot", "content": "x"}])
