"""Calibration data: documents of a data set, turned into token sequences of one length."""

from __future__ import annotations

import hashlib
import random
from array import array
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toolchain.errors import DataError, QuantizeError
from toolchain.model.tokenizer import check_vocabulary, load_tokenizer, start_tokens
from toolchain.progress import Progress, Silent
from toolchain.text.documents import Documents
from toolchain.text.files import TextFiles

# Characters a token; on the low side, so that a piece of text fills several sequences.
_CHARACTERS = 8

# Documents that are read and encoded together, at first and at most.
_FIRST, _MOST = 64, 4096


@dataclass(frozen=True)
class Calibration:
    """Token sequences for calibration.

    Attributes:
        dataset: as the recipe names it.
        tokens: int64 [samples, seq_len].
        seed: what the selection was drawn with.
        documents: how many were drawn, the last perhaps in part.
    """

    dataset: str
    tokens: Tensor
    seed: int
    documents: int = 0

    @property
    def digest(self) -> str:
        """sha256 of the tokens: equal digests mean equal calibration."""
        shape = "x".join(str(size) for size in self.tokens.shape)
        return hashlib.sha256(f"{shape}:".encode() + self.tokens.numpy().tobytes()).hexdigest()


def load_calibration(
    text: TextFiles,
    model_dir: Path,
    *,
    vocab_size: int,
    samples: int,
    seq_len: int,
    seed: int,
    progress: Progress | None = None,
) -> Calibration:
    """Draw documents from a data set, tokenize them with the model's own tokenizer, and pack them.

    The documents are all records, or pieces of a plain text that end at a line's end, of all files. They
    are put into an order that `seed` alone decides, each order as likely as any other, and read and
    tokenized in that order until they fill `samples` sequences of `seq_len` tokens: without replacement, a
    long document as likely as a short one. Documents without text are passed over. Every sequence begins
    with what the tokenizer puts before a text, mostly BOS or nothing; nothing else is added or padded.

    No document but those that are drawn is held or checked.

    Raises:
        QuantizeError: the sequences asked for are none.
        DataError: the data cannot be read, is malformed, or is too short.
        ModelError: the tokenizer is missing or does not belong to a model of `vocab_size` tokens.
    """
    if samples < 1 or seq_len < 2:
        raise QuantizeError(
            f"{samples} samples of {seq_len} tokens are no calibration set",
            where="calibration",
            fix="ask for at least 1 sample of 2 tokens; 128 samples of 512 are a good start",
        )
    tokenizer = load_tokenizer(model_dir)
    start = start_tokens(tokenizer)[: seq_len - 1]
    each = seq_len - len(start)
    needed = samples * each

    documents = Documents(text, model_dir, piece=_CHARACTERS * seq_len)
    order = array("Q", range(len(documents)))
    random.Random(seed).shuffle(order)

    stream = array("q")
    drawn = read = 0
    while len(stream) < needed and read < len(order):
        size = _batch_size(read, len(stream), needed)
        texts = [text for text in documents.read(order[read : read + size]) if text.strip()]
        read += size
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            if len(stream) < needed:
                stream.extend(encoding.ids)
                drawn += 1
    _tell_empty(documents, progress or Silent())
    if len(stream) < needed:
        raise _too_short(documents, len(stream), samples, seq_len, each)
    check_vocabulary(stream[:needed], tokenizer, vocab_size, model_dir)
    sequences = torch.tensor(stream[:needed], dtype=torch.int64).view(samples, each)
    prefix = torch.tensor(start, dtype=torch.int64).expand(samples, len(start))
    return Calibration(text.name, torch.cat((prefix, sequences), dim=1), seed, drawn)


def _batch_size(read: int, have: int, needed: int) -> int:
    """How many documents to read next, so that they are likely to be enough."""
    if have == 0:
        return _FIRST if read == 0 else _MOST
    return min(_MOST, 16 + int(1.1 * read * (needed - have) / have))


def _tell_empty(documents: Documents, progress: Progress) -> None:
    if documents.empty:
        progress.note(
            f"empty documents of the calibration data passed over: {documents.empty}, the first at "
            f"{documents.first_empty}"
        )


def _too_short(documents: Documents, have: int, samples: int, seq_len: int, each: int) -> DataError:
    why = None
    if documents.empty:
        why = f"{documents.empty} of {len(documents)} documents are empty, as at {documents.first_empty}"
    return DataError(
        f"the calibration data is too short: {have} tokens, but {samples} samples of {seq_len} need "
        f"{samples * each}",
        where=documents.where,
        why=why,
        fix=f"add text, or ask for at most {have // each} samples" if have >= each else "add text",
    )
