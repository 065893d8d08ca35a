from __future__ import annotations

import pytest
from detokenize import REPLACEMENT, Detokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "the quick brown fox 🦊 jumps über the naïve dog",
    "日本語のテキスト and some English",
    "x = [1, 2, 3]\n\n",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<tool> ü", special=False)])
    return tokenizer


def sentence_piece() -> Tokenizer:
    """Llama 2's kind: words begin with ▁, unknown characters are spelled in byte tokens."""
    characters = sorted(set("".join(TEXT)) - {" ", "🦊", "日"} | {"▁"})
    vocabulary = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, "▁t"]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(vocabulary)},
            [("▁", "t")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([prepend, replace])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "sentence-piece": sentence_piece()}


def streamed(detokenizer: Detokenizer, prompt: list[int], tokens: list[int]) -> list[str]:
    stream = detokenizer.stream(prompt)
    return [stream.push(token) for token in tokens] + [stream.finish()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(max_size=40))
def test_pieces_make_the_text_and_hold_no_half_character(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    detokenizer = Detokenizer(tokenizer)
    tokens = tokenizer.encode(text).ids
    pieces = streamed(detokenizer, [], tokens)
    assert "".join(pieces) == detokenizer.decode(tokens)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@given(data=st.data())
def test_any_byte_level_tokens_stream_as_they_decode(data: st.DataObject) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    size = tokenizer.get_vocab_size()
    tokens = data.draw(st.lists(st.integers(0, size - 1), max_size=30))
    detokenizer = Detokenizer(tokenizer)
    assert "".join(streamed(detokenizer, [], tokens)) == detokenizer.decode(tokens)


@given(data=st.data())
def test_broken_bytes_never_stall_a_stream(data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(2, 257), min_size=20, max_size=40))  # byte tokens
    pieces = streamed(Detokenizer(TOKENIZERS["sentence-piece"]), [], tokens)
    assert any(pieces[:-1])


def test_the_space_before_the_first_word_is_kept() -> None:
    tokenizer = TOKENIZERS["sentence-piece"]
    prompt, tokens = tokenizer.encode("the quick").ids, tokenizer.encode("brown fox").ids
    assert "".join(streamed(Detokenizer(tokenizer), prompt, tokens)) == " brown fox"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens_are_left_out_unless_wanted(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    end = "<|end|>" if kind == "byte-level" else "</s>"
    tokens = [*tokenizer.encode("the dog").ids, tokenizer.token_to_id(end)]
    assert "".join(streamed(Detokenizer(tokenizer), [], tokens)) == "the dog"
    assert end in "".join(streamed(Detokenizer(tokenizer, skip_special_tokens=False), [], tokens))


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    assert streamed(Detokenizer(TOKENIZERS["byte-level"]), [], [9999]) == ["", ""]
