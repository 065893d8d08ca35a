"""A tokenizer, a checkpoint's directory and an engine's, with the right shape and nothing inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

VOCABULARY = 64


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    words = {f"w{index}": index for index in range(60) if index != 17}  # a gap, as some tokenizers have
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., Path]:
    """Make an engine of two ranks, as `trtllm-build` leaves it but for the bytes."""

    def make(name: str = "engine", **build: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        facts = {
            "version": "1.2.1",
            "pretrained_config": {"vocab_size": VOCABULARY, "mapping": {"world_size": 2, "tp_size": 2}},
            "build_config": {
                "max_beam_width": 4,
                "speculative_decoding_mode": 1,
                "plugin_config": {"use_paged_context_fmha": True},
            }
            | build,
        }
        (directory / "config.json").write_text(json.dumps(facts))
        for rank in range(2):
            (directory / f"rank{rank}.engine").write_bytes(b"engine")
        return directory

    return make
