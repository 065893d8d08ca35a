"""What `make demo` runs: build the demo recipe, serve it with Triton, stream two answers.

Every step is a command that a user would type; it is printed before it runs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from deploy.find import find_triton, prepare
from toolchain.errors import LlmbuildError

ROOT = Path(__file__).absolute().parents[1]
ARTIFACT = "artifacts/demo-int4"
PROMPTS = (
    [ARTIFACT, "def read_lines(path):", "--max-tokens", "64"],
    [ARTIFACT, "Write a function that reads a file", "--chat", "--max-tokens", "64"],
)


def main() -> int:
    """Run the demo; the exit code is that of the first command that failed."""
    os.chdir(ROOT)
    prepare(find_triton())  # what is missing is better said before the build than after
    if code := run("build", "configs/demo-int4.yaml"):
        return code
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    serve = ["serve", ARTIFACT, *ports, "--quiet"]
    show(serve, " &")
    server = subprocess.Popen(["llmbuild", *serve], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        for line in server.stdout:
            print(line, end="")
            if line.startswith("try:"):
                break
        else:
            return server.wait()
        for prompt in PROMPTS:
            print(flush=True)
            if code := run("generate", *prompt):
                return code
    finally:
        server.terminate()
        server.wait()
    print("\nserve it yourself: llmbuild serve", ARTIFACT)
    return 0


def run(*words: str) -> int:
    """Show a command, then run it."""
    show(words)
    return subprocess.run(["llmbuild", *words], check=False).returncode


def show(words: list[str] | tuple[str, ...], suffix: str = "") -> None:
    """Print a command as one would type it."""
    print(f"$ llmbuild {shlex.join(words)}{suffix}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LlmbuildError as error:
        sys.exit(str(error))
