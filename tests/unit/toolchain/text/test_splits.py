"""Which files make up which split."""

from typing import Any

import pytest
import yaml

from toolchain.text.splits import find_subsets


def subsets(names: list[str], card: str = "") -> dict[str, dict[str, list[str]]]:
    return {subset.name: subset.splits for subset in find_subsets(names, card)}


def card(*configs: Any) -> str:
    return f"---\n{yaml.safe_dump({'license': 'mit', 'configs': list(configs)})}---\n# A set\n"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/train_sft-00000-of-00003-a3ecf92756993583.parquet", "train_sft"),
        ("data.jsonl", "train"),
        ("test.jsonl.gz", "test"),
        ("en/c4-validation.00003-of-00008.json.gz", "validation"),
        ("my_eval_set.txt", "test"),
        ("dev/part.jsonl", "validation"),
        ("contest.jsonl", "train"),
        ("train/validation.jsonl", "validation"),
        ("default/train/0000.parquet", "train"),
    ],
)
def test_names_tell_the_split(name: str, split: str) -> None:
    assert subsets([name])["default"] == {split: [name]}


def test_what_is_no_text_does_not_count() -> None:
    names = [
        *("README.md", ".gitattributes", "dataset_infos.json", "image.png", "data.csv", "script.py"),
        *(".hidden/a.jsonl", "_drafts/a.jsonl", "data.tar.gz"),
    ]
    assert subsets([*names, "a.txt.zst"]) == {"default": {"train": ["a.txt.zst"]}}


def test_a_directory_can_be_named_where_the_card_names_nothing() -> None:
    # As the branch refs/convert/parquet has it.
    found = subsets(["big/train/0000.parquet", "big/train/0001.parquet", "small/test/0000.parquet"])
    assert found["big"] == {"train": ["big/train/0000.parquet", "big/train/0001.parquet"]}
    assert found["small"] == {"test": ["small/test/0000.parquet"]}
    assert set(found["default"]) == {"train", "test"}


def test_the_card_decides() -> None:
    names = ["a/train-00000-of-00001.parquet", "b/x.parquet", "b/y.parquet", "b/deep/z.parquet", "c/q.jsonl"]
    found = subsets(
        names,
        card(
            {"config_name": "one", "data_files": [{"split": "train", "path": "a/train-*"}]},
            {"config_name": "two", "data_files": [{"split": "test", "path": ["b/*.parquet"]}]},
            {"config_name": "three", "data_files": {"extra": "b/**/*.parquet"}},
            {"config_name": "four", "data_files": "c/?.jsonl"},
            {"config_name": "five", "data_files": ["b/[xz].parquet", "./c/q.jsonl"]},
            {"config_name": "six", "data_dir": "b"},
            {"config_name": "seven", "data_dir": "b", "data_files": [{"split": "s", "path": "[!x].parquet"}]},
            {"config_name": "eight"},
        ),
    )
    assert found == {
        "one": {"train": ["a/train-00000-of-00001.parquet"]},
        "two": {"test": ["b/x.parquet", "b/y.parquet"]},
        "three": {"extra": ["b/deep/z.parquet", "b/x.parquet", "b/y.parquet"]},
        "four": {"train": ["c/q.jsonl"]},
        "five": {"train": ["b/x.parquet", "c/q.jsonl"]},
        "six": {"train": ["b/deep/z.parquet", "b/x.parquet", "b/y.parquet"]},
        "seven": {"s": ["b/y.parquet"]},
    }


@pytest.mark.parametrize(
    "text", ["", "# no front matter", "---\na: [\n---\n", "---\n- a\n---\n", "---\nconfigs: x\n---\n"]
)
def test_a_card_that_says_nothing(text: str) -> None:
    assert subsets(["test.jsonl"], text) == {"default": {"test": ["test.jsonl"]}}


def test_the_default_is_marked() -> None:
    text = card(
        {"config_name": "a", "data_files": "a.txt"},
        {"config_name": "b", "data_files": "b.txt", "default": True},
    )
    assert [subset.default for subset in find_subsets(["a.txt", "b.txt"], text)] == [False, True]
