"""Token streams: written once by `prepare`, read by training, on this machine or another one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from demo_model.architecture import END_OF_TEXT_ID
from demo_model.corpus import Corpus, conversations
from demo_model.tokenizer import render_turn, train_tokenizer

STREAM_SEED = 20


@dataclass(frozen=True)
class Streams:
    """What training reads: uint16 tokens. Validation is the calibration text; held-out text is not here."""

    train: np.ndarray
    validation: np.ndarray

    def save(self, directory: Path) -> None:
        """Write train.npy and validation.npy."""
        directory.mkdir(parents=True, exist_ok=True)
        np.save(directory / "train.npy", self.train)
        np.save(directory / "validation.npy", self.validation)

    @classmethod
    def load(cls, directory: Path) -> Streams:
        """Read what `save` wrote."""
        return cls(np.load(directory / "train.npy"), np.load(directory / "validation.npy"))


def prepare(corpus: Corpus) -> tuple[Tokenizer, Streams]:
    """Learn the tokenizer on the training text, and encode the training and validation streams."""
    turns = [render_turn(*pair) for pair in conversations(corpus.train, STREAM_SEED)]
    texts = [document.text for document in corpus.train]
    tokenizer = train_tokenizer(texts)
    mixed = texts + turns
    random.Random(STREAM_SEED).shuffle(mixed)
    validation = [document.text for document in corpus.calibration]
    return tokenizer, Streams(_encode(tokenizer, mixed), _encode(tokenizer, validation))


def save_texts(corpus: Corpus, directory: Path) -> None:
    """Write calibration.jsonl (one file a line: source, text) and heldout.txt (the files end to end)."""
    rows = [json.dumps({"source": d.name, "text": d.text}, ensure_ascii=False) for d in corpus.calibration]
    (directory / "calibration.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    (directory / "heldout.txt").write_text("".join(d.text for d in corpus.heldout), "utf-8")


def windows(tokens: np.ndarray, length: int) -> torch.Tensor:
    """Non-overlapping windows, int64 [count, length]; a last window that is not full is left out."""
    count = len(tokens) // length
    return torch.from_numpy(tokens[: count * length].astype(np.int64).reshape(count, length))


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """All texts in one stream, each followed by the end-of-text token."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids += encoding.ids
        ids.append(END_OF_TEXT_ID)
    return np.array(ids, np.uint16)
