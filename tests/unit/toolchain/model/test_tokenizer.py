"""The model's tokenizer."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from toolchain.errors import ModelError
from toolchain.model.tokenizer import check_vocabulary, load_tokenizer, start_tokens

DEMO = Path(__file__).parents[4] / "models" / "demo"


def test_it_neither_cuts_nor_pads(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a text of more than four tokens"
    plain = load_tokenizer(DEMO).encode(text, add_special_tokens=False).ids
    assert load_tokenizer(tmp_path).encode(text, add_special_tokens=False).ids == plain


def test_what_comes_before_a_text() -> None:
    tokenizer = load_tokenizer(DEMO)
    first, second, third = (tokenizer.id_to_token(number) for number in range(3))
    for template, ids in (
        (f"{first} $A", [0]),
        (f"{third} {second} $A {first}", [2, 1]),
        (f"$A {first}", []),
    ):
        tokens = [(name, tokenizer.token_to_id(name)) for name in (first, second, third)]
        tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=tokens)
        assert start_tokens(tokenizer) == ids


def test_start_tokens_are_those_that_transformers_adds() -> None:
    from transformers import AutoTokenizer

    added = AutoTokenizer.from_pretrained(DEMO)("")["input_ids"]
    assert start_tokens(load_tokenizer(DEMO)) == added


def test_tokens_outside_the_vocabulary() -> None:
    tokenizer = load_tokenizer(DEMO)
    check_vocabulary([], tokenizer, 1, DEMO)
    check_vocabulary([3, 99], tokenizer, 100, DEMO)
    with pytest.raises(ModelError, match=r"token 100 \('.*'\) lies outside the model's vocabulary.* 99"):
        check_vocabulary([3, 100, 7], tokenizer, 100, DEMO)


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
    shutil.copyfile(DEMO / "config.json", tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
