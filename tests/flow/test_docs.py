"""Every command in the README and in docs/ is run, in the order in which a reader meets them.

A command is a line that begins with "$ " in a ```console block. `make test` is the one exception: it is
what runs this.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# benchmarks.md is written by the one command that it shows, which takes a quarter of an hour.
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "benchmarks"),
]

PRELUDE = """\
set -euo pipefail
in_background() {  # run a command beside the others, and wait until it says that it is ready
    "$@" > background.log 2>&1 &
    for _ in $(seq 2400); do
        grep -q "is ready" background.log && return
        kill -0 $! || break
        sleep 0.1
    done
    cat background.log
    return 1
}
"""


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ") and line != "$ make test"]


def script(page: Path) -> str:
    run = [
        f"in_background {command[:-1]}" if command.endswith("&") else command for command in commands(page)
    ]
    return PRELUDE + "".join(f"echo {shlex.quote('+ ' + line)}\n{line}\n" for line in run)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all pages: most build the same demo."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_docs_runs(page, tmp_path, store):
    if "curl " in page.read_text() and shutil.which("curl") is None:
        pytest.skip("the page uses curl, which is not here")
    for name in (".venv", "Makefile", "configs", "constraints.txt", "models", "pyproject.toml", "tools"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "LLMBUILD_STORE": str(store), "COLUMNS": "110"}
    shell = subprocess.Popen(
        ["bash", "-c", script(page)], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = shell.communicate(timeout=1140)
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            try:
                os.killpg(shell.pid, signum)
            except ProcessLookupError:
                break
    assert shell.returncode == 0, output


def test_every_page_has_commands():
    assert [page.name for page in PAGES if not commands(page)] == []


def test_the_flavour_table_is_complete():
    from typing import get_args

    from toolchain.recipe.engine import Flavour

    table = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(get_args(Flavour))
