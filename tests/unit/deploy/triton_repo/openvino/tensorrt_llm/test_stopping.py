from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from stopping import Piece, StopMatcher, StopWord


def run(words: list[StopWord], texts: list[str]) -> tuple[list[str], bool]:
    """Texts let out, one entry a push; tokens are numbered from 0."""
    matcher = StopMatcher(words)
    out = []
    for token, text in enumerate(texts):
        pieces, rest, stopped = matcher.push(Piece(token, 0.0, text))
        out.append("".join(piece.text for piece in pieces) + rest)
        if stopped:
            return out, True
    out.append("".join(piece.text for piece in matcher.finish()))
    return out, False


def word(text: str, *tokens: int) -> StopWord:
    return StopWord(tokens or (10_000,), text)


def test_the_beginning_of_a_stop_word_waits() -> None:
    assert run([word("END")], ["a", "E", "N", "x"]) == (["a", "", "", "ENx", ""], False)


def test_a_stop_word_across_tokens_never_shows() -> None:
    assert run([word("END")], ["one E", "ND two"]) == (["", "one "], True)


def test_a_stop_word_inside_a_token_splits_it() -> None:
    assert run([word("\n")], ["a", "b\nc"]) == (["a", "b"], True)


def test_the_earliest_of_several_wins() -> None:
    assert run([word("cd"), word("b")], ["abcd"]) == (["a"], True)


def test_tokens_without_text_match_by_their_ids() -> None:
    assert run([word("", 1, 2)], ["a", "", "", "b"]) == (["a", "", ""], True)
    assert run([word("", 1, 5)], ["a", "", "", "b"]) == (["a", "", "", "b", ""], False)


def test_what_became_of_earlier_bytes_is_no_part_of_the_word() -> None:
    """A character that stays incomplete shows as a replacement only in the text of the next token."""
    assert run([word("INver", 1, 2)], ["", "\ufffdIN", "ver"]) == (["", "", "\ufffd"], True)


def test_what_is_held_comes_out_at_the_end() -> None:
    assert run([word("END")], ["a", "EN"]) == (["a", "", "EN"], False)


LETTERS = st.text("ab", min_size=1, max_size=4)


@given(
    words=st.lists(LETTERS, min_size=1, max_size=3), texts=st.lists(st.text("ab", max_size=3), max_size=12)
)
def test_output_is_the_text_up_to_the_first_stop_word(words: list[str], texts: list[str]) -> None:
    out, stopped = run([word(text) for text in words], texts)
    whole, got = "".join(texts), "".join(out)
    assert stopped == any(text in whole for text in words)
    assert whole.startswith(got)
    assert not any(text in got for text in words)
    if stopped:
        rest = whole[len(got) :]
        assert any(rest.startswith(text) for text in words)
    else:
        assert got == whole
