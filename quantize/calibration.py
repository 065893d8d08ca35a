"""Calibration data: local text, turned into token sequences of one length.

Forms of a `file:` dataset, by suffix:
    .jsonl  one JSON object a line, with `text` (a string) or `messages` (a chat, rendered by the chat
            template of the tokenizer);
    other   UTF-8 text.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolchain.errors import QuantizeError

# Characters a token; on the low side, so that a piece of text fills several sequences.
_CHARACTERS = 8


@dataclass(frozen=True)
class Calibration:
    """Token sequences for calibration.

    Attributes:
        dataset: as the recipe names it.
        tokens: int64 [samples, seq_len].
        seed: what the selection was drawn with.
    """

    dataset: str
    tokens: Tensor
    seed: int

    @property
    def digest(self) -> str:
        """sha256 of the tokens: equal digests mean equal calibration."""
        shape = "x".join(str(size) for size in self.tokens.shape)
        return hashlib.sha256(f"{shape}:".encode() + self.tokens.numpy().tobytes()).hexdigest()


def load_calibration(
    dataset: str, model_dir: Path, *, vocab_size: int, samples: int, seq_len: int, seed: int
) -> Calibration:
    """Read `file:PATH`, tokenize it with the model's own tokenizer, and pack it.

    The documents (records, or pieces of a text that end at a line's end) are shuffled by `seed` and
    tokenized in that order until they fill `samples` sequences of `seq_len` tokens. Every sequence begins
    with the tokenizer's BOS, if it has the habit of adding one; otherwise nothing is added or padded.

    Raises:
        QuantizeError: a dataset that cannot be read, is malformed, or is too short; a tokenizer that is
            missing or does not belong to a model of `vocab_size` tokens.
    """
    if samples < 1 or seq_len < 2:
        raise QuantizeError(
            f"{samples} samples of {seq_len} tokens are no calibration set",
            where="calibration",
            fix="ask for at least 1 sample of 2 tokens; 128 samples of 512 are a good start",
        )
    path = _dataset_path(dataset)
    tokenizer = _load_tokenizer(model_dir)
    documents = _documents(path, tokenizer, piece=_CHARACTERS * seq_len)
    random.Random(seed).shuffle(documents)

    start = tokenizer("")["input_ids"][:1]
    start = start if start == [tokenizer.bos_token_id] else []
    needed = samples * (seq_len - len(start))
    stream: list[int] = []
    for document in documents:
        stream += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if len(stream) >= needed:
            break
    if len(stream) < needed:
        enough_for = len(stream) // (seq_len - len(start))
        raise QuantizeError(
            f"the calibration data is too short: {len(stream)} tokens, but {samples} samples of "
            f"{seq_len} need {needed}",
            where=str(path),
            fix=f"add text, or ask for at most {enough_for} samples" if enough_for else "add text",
        )
    sequences = torch.tensor(stream[:needed], dtype=torch.int64).view(samples, -1)
    prefix = torch.tensor(start, dtype=torch.int64).expand(samples, len(start))
    tokens = torch.cat((prefix, sequences), dim=1)
    _check_vocabulary(tokens, vocab_size, tokenizer, path)
    return Calibration(dataset, tokens, seed)


def _dataset_path(dataset: str) -> Path:
    scheme, _, rest = dataset.partition(":")
    if scheme != "file" or not rest:
        raise QuantizeError(
            f"the dataset {dataset!r} is not understood",
            where="calibration",
            fix="name a local file: file:calibration.txt or file:calibration.jsonl",
        )
    return Path(rest)


def _load_tokenizer(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    except Exception as error:  # transformers raises many kinds here, and their text is what helps
        raise QuantizeError(
            "the model's tokenizer cannot be loaded",
            where=str(model_dir),
            why=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix="put the model's tokenizer.json and tokenizer_config.json into its directory",
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise QuantizeError(
            "the calibration data is not UTF-8",
            where=str(path),
            why=f"byte {error.start} is 0x{error.object[error.start]:02x}",
            fix=f"convert it: iconv -f latin1 -t utf-8 {path.name}",
        ) from error
    except OSError as error:
        raise QuantizeError(
            f"the calibration data cannot be read: {error.strerror}",
            where=str(path),
            fix="check the path; a relative one starts at the current directory",
        ) from error


def _documents(path: Path, tokenizer: Any, piece: int) -> list[str]:
    text = _read(path)
    if path.suffix == ".jsonl":
        lines = text.removesuffix("\n").split("\n")
        return [_record(line, f"{path}:{number}", tokenizer) for number, line in enumerate(lines, start=1)]
    if not text.strip():
        raise QuantizeError("the calibration data is empty", where=str(path), fix="put text into the file")
    return list(_pieces(text.splitlines(keepends=True), piece))


def _pieces(lines: Sequence[str], size: int) -> Iterator[str]:
    """Join lines to pieces of at least `size` characters, the last one excepted."""
    held: list[str] = []
    length = 0
    for line in lines:
        held.append(line)
        length += len(line)
        if length >= size:
            yield "".join(held)
            held, length = [], 0
    if held:
        yield "".join(held)


def _record(line: str, where: str, tokenizer: Any) -> str:
    """The text of one line of a JSONL dataset."""
    if not line.strip():
        raise QuantizeError("the line is empty", where=where, fix="remove it, or write a record")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QuantizeError("the line is not JSON", where=where, why=str(error)) from error
    fields = record if isinstance(record, dict) else {}
    if isinstance(fields.get("text"), str):
        if not fields["text"].strip():
            raise QuantizeError("the record's text is empty", where=where, fix="remove the line")
        return str(fields["text"])
    if "messages" in fields:
        return _render_chat(fields["messages"], where, tokenizer)
    raise QuantizeError(
        "the record has neither text nor messages",
        where=where,
        why=f"it is {'an object with ' + ', '.join(fields) if fields else 'not such an object'}",
        fix='write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
    )


def _render_chat(messages: Any, where: str, tokenizer: Any) -> str:
    well_formed = isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
        for message in messages
    )
    if not well_formed or not messages:
        raise QuantizeError(
            "the record's messages are malformed",
            where=where,
            fix='write [{"role": "user", "content": "..."}, ...]',
        )
    if tokenizer.chat_template is None:
        raise QuantizeError(
            "the record is a chat, but the model's tokenizer has no chat template",
            where=where,
            fix="give the records as text, or put chat_template.jinja into the model's directory",
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # templates raise whatever their authors chose
        raise QuantizeError("the chat template refuses the record", where=where, why=str(error)) from error


def _check_vocabulary(tokens: Tensor, vocab_size: int, tokenizer: Any, path: Path) -> None:
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.numel():
        worst = int(outside.max())
        raise QuantizeError(
            f"token {worst} ({tokenizer.convert_ids_to_tokens(worst)!r}) lies outside the model's "
            f"vocabulary of {vocab_size}",
            where=str(path),
            why="the tokenizer in the model's directory is not the model's own",
            fix="restore the tokenizer files that belong to the model",
        )
