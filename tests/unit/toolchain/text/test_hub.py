"""Data sets of the Hub: the real client, against its own cache and a small server."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPO, COMMIT = "owner/name", "c0ffee" + "0" * 34

CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
- config_name: other
  data_files: other.jsonl
---
"""

ASK = """
import json, sys
from toolchain.errors import LlmbuildError
from toolchain.text.files import find_text
from toolchain.text import hub
hub.ENOUGH = int(sys.argv[1]) or hub.ENOUGH
for question in json.loads(sys.argv[2]):
    try:
        text = find_text(**question)
        print(json.dumps({"files": [str(file) for file in text.files], "commit": text.commit}))
    except LlmbuildError as error:
        print(json.dumps(error.to_json()))
"""


def parquet(*texts: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


FILES = {
    ".gitattributes": b"*.parquet filter=lfs\n",
    "README.md": CARD.encode(),
    "data/train-00000-of-00002.parquet": parquet("one", "two"),
    "data/train-00001-of-00002.parquet": parquet("three"),
    "data/test-00000-of-00001.parquet": parquet("four"),
    "data/train-notes.txt": b"not in the form of the others",
    "other.jsonl": b'{"text": "five"}\n',
}


class HubServer:
    """Serves `files` as REPO at COMMIT, which is its branch main; `asked` lists the files that were sent."""

    def __init__(self, files: Mapping[str, bytes], gated: bool = False) -> None:
        self.files, self.gated = files, gated
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def _answer(self, body: bool) -> None:
                status, headers, content = server.answer(unquote(urlsplit(self.path).path), body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, path: str, body: bool) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content for a path."""
        api, resolve = f"/api/datasets/{REPO}", f"/datasets/{REPO}/resolve/{COMMIT}/"
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            return 200, {}, json.dumps({"_id": "0", "id": REPO, "sha": COMMIT, "siblings": []}).encode()
        if path == f"{api}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        name = path.removeprefix(resolve)
        if name in self.files:
            if body:
                self.asked.append(name)
            data = self.files[name]
            return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(data)}"'}, data
        code = "RevisionNotFound" if path.startswith(f"{api}/") else "RepoNotFound"
        return 404, {"X-Error-Code": code, "X-Error-Message": f"no {path}"}, b""

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def ask(home: Path, *questions: Any, endpoint: str | None = None, enough: int = 0) -> list[Any]:
    """What `find_text` gives in a process of its own: the client reads its settings when it is loaded."""
    settings = {"HF_ENDPOINT": endpoint} if endpoint else {"HF_HUB_OFFLINE": "1"}
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | {"HF_HOME": str(home)}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    asked = json.dumps([{"dataset": f"hf:{REPO}"} | question for question in questions])
    command = [sys.executable, "-c", ASK, str(enough), asked]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(answer: Any) -> list[str]:
    assert answer["commit"] == COMMIT, answer
    return [file.partition(f"/snapshots/{COMMIT}/")[2] for file in answer["files"]]


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A cache as the client lays it out: blobs by hash, a snapshot of links, the branch main."""
    repo = tmp_path / "home" / "hub" / f"datasets--{REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    for number, (name, data) in enumerate(FILES.items()):
        blob = repo / "blobs" / f"{number:040x}"
        blob.write_bytes(data)
        link = repo / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return tmp_path / "home"


TRAIN = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


def test_a_cached_data_set_needs_no_network(cached: Path) -> None:
    questions = {"split": "train"}, {"split": "test", "revision": COMMIT}, {"subset": "other"}
    train, test, other = ask(cached, *questions)
    assert names(train) == TRAIN
    assert [Path(file).read_bytes() for file in train["files"]] == [FILES[name] for name in TRAIN]
    assert names(test) == ["data/test-00000-of-00001.parquet"]
    assert names(other) == ["other.jsonl"]


def test_offline_what_is_not_there(cached: Path) -> None:
    cases: list[tuple[dict[str, str], str, list[str]]] = [
        ({}, "data", ["several splits", "to one of train, test"]),
        ({"split": "dev"}, "toolchain", ["the Hub cannot be reached", "only train, test", "hf download"]),
        ({"subset": "no"}, "toolchain", ["the Hub cannot be reached", "no subset no, only main, other"]),
        ({"revision": "v2"}, "toolchain", ["owner/name is not here", "HF_HUB_OFFLINE", "--revision v2"]),
        ({"dataset": "hf:owner/none"}, "toolchain", ["owner/none is not here", "hf download"]),
        ({"dataset": "wikitext"}, "data", ["'wikitext' is not understood", "hf:OWNER/NAME"]),
        ({"dataset": "file:"}, "data", ["is not understood"]),
    ]
    for error, (_, kind, said) in zip(ask(cached, *(case[0] for case in cases)), cases, strict=True):
        assert error["kind"] == kind
        for words in said:
            assert words in " ".join(map(str, error.values()))


def test_a_split_is_downloaded_once_and_then_known_offline(tmp_path: Path) -> None:
    with HubServer(FILES) as hub:
        first, again = ask(tmp_path, {"split": "train"}, {"split": "train"}, endpoint=hub.url)
        assert sorted(hub.asked) == ["README.md", *TRAIN]
    assert names(first) == TRAIN
    offline, test = ask(tmp_path, {"split": "train"}, {"split": "test"})
    assert first == again == offline
    assert (test["kind"], test["exit_code"]) == ("toolchain", 5)


def test_a_large_split_is_taken_from_its_first_files(tmp_path: Path) -> None:
    with HubServer(FILES) as hub:
        (first,) = ask(tmp_path, {"split": "train"}, endpoint=hub.url, enough=10)
    assert names(first) == TRAIN[:1]
    assert ask(tmp_path, {"split": "train"}, enough=10) == [first]


def test_what_the_hub_does_not_have(tmp_path: Path) -> None:
    questions = {"split": "dev"}, {"subset": "small"}, {"revision": "v9"}, {"dataset": "hf:owner/none"}
    with HubServer(FILES) as hub:
        split, subset, revision, none = ask(tmp_path, *questions, endpoint=hub.url)
    assert (split["kind"], split["what"]) == ("data", "the data set has no split dev, only train, test")
    assert split["fix"] == "set split, beside dataset, to one of train, test"
    assert "no subset small" in subset["what"]
    assert "no revision v9" in revision["what"]
    assert "no such data set" in none["what"]


def test_a_gated_data_set(tmp_path: Path) -> None:
    with HubServer(FILES, gated=True) as hub:
        (gated,) = ask(tmp_path, {}, endpoint=hub.url)
    assert (gated["kind"], gated["what"]) == ("toolchain", "the data set is gated")


def test_without_a_card_names_tell(tmp_path: Path) -> None:
    with HubServer({"train.jsonl": b'{"text": "x"}\n', "test.txt": b"y"}) as hub:
        train, test = ask(tmp_path, {"split": "train"}, {"split": "test"}, endpoint=hub.url)
    assert (names(train), names(test)) == (["train.jsonl"], ["test.txt"])


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    with HubServer({"README.md": b"", "data.csv": b"a,b\n"}) as hub:
        (csv,) = ask(tmp_path, {}, endpoint=hub.url)
    assert csv["what"] == "the data set has no file that can be read"
    assert "refs/convert/parquet" in csv["fix"]
