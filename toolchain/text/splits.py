"""Which files of a Hub data set make up which split of which subset.

The card (README.md) says so under `configs` (https://huggingface.co/docs/hub/datasets-manual-configuration).
Where it does not, the names of files and directories tell, as the Hub's viewer has it
(https://huggingface.co/docs/hub/datasets-file-names-and-splits).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from toolchain.text.files import COMPRESSIONS, FORMS

Splits = dict[str, list[str]]
"""Names of files by split."""

_NOT_TEXT = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
_KEYWORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}
_SHARD = re.compile(r"(?P<split>[\w.]+)-\d{5}-of-\d{5}[^/]*")


@dataclass(frozen=True)
class Subset:
    """What cards call a config: a variant of the data set."""

    name: str
    splits: Splits
    default: bool = False


def find_subsets(names: Iterable[str], card: str) -> list[Subset]:
    """The subsets of a data set, from the names of its files and the text of its card ("" if none).

    Without a card that names any, there is one, and each directory that holds text can be named as another.
    """
    texts = sorted(name for name in names if _is_text(name))
    named = [
        Subset(str(config["config_name"]), _listed(config, texts), config.get("default") is True)
        for config in _configs(card)
    ]
    if named:
        return named
    directories = sorted({name.partition("/")[0] for name in texts if "/" in name})
    below = [
        Subset(directory, _told_by_names([name for name in texts if name.startswith(f"{directory}/")]))
        for directory in directories
    ]
    return [Subset("default", _told_by_names(texts), default=True), *below]


def _is_text(name: str) -> bool:
    path = PurePosixPath(name)
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return suffix.removeprefix(".") in FORMS and path.name not in _NOT_TEXT and not hidden


def _configs(card: str) -> list[Mapping[str, Any]]:
    """The `configs` of a card that name files; none if there is nothing that makes sense."""
    front = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    try:
        data = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return []
    configs = data.get("configs") if isinstance(data, dict) else None
    return [
        config
        for config in (configs if isinstance(configs, list) else [])
        if isinstance(config, dict) and "config_name" in config and {"data_files", "data_dir"} & set(config)
    ]


def _listed(config: Mapping[str, Any], texts: Sequence[str]) -> Splits:
    """The files that one of the card's configs names: patterns, by split or for `train`."""
    directory = str(config.get("data_dir", "")).strip("/")
    if "data_files" not in config:
        return _told_by_names([name for name in texts if name.startswith(f"{directory}/")])
    files = config["data_files"]
    entries = files if isinstance(files, list) else [files]
    splits: Splits = {}
    for entry in entries:
        by_split = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        if "path" in by_split:
            by_split = {by_split.get("split", "train"): by_split["path"]}
        for split, patterns in by_split.items():
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                whole = re.compile(_as_regex("/".join(filter(None, [directory, str(pattern)]))))
                splits.setdefault(str(split), []).extend(filter(whole.fullmatch, texts))
    return {split: sorted(set(found)) for split, found in splits.items()}


def _as_regex(pattern: str) -> str:
    """A glob as a regular expression; `*` does not match a slash, `**` does."""
    forms = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern.removeprefix("./"))
    return "".join(
        forms.get(part) or (part.replace("[!", "[^", 1) if part.startswith("[") else re.escape(part))
        for part in parts
    )


def _told_by_names(names: Iterable[str]) -> Splits:
    splits: Splits = {}
    for name in names:
        splits.setdefault(_split_in(name), []).append(name)
    return splits


def _split_in(name: str) -> str:
    """The split that a file's name, or a directory of it, tells; train if none does."""
    *directories, file = name.split("/")
    shard = _SHARD.fullmatch(file)
    if shard:
        return shard["split"]
    for part in (file, *reversed(directories)):
        for split, words in _KEYWORDS.items():
            if re.search(rf"(?<![a-z])({words})(?![a-z])", part.lower()):
                return split
    return "train"
