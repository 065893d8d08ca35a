"""The checker of guides as the Triton model sees it: a process that is started when the first guide comes."""

from __future__ import annotations

import json
import select
import subprocess
from collections import OrderedDict
from pathlib import Path

from engine_process import python
from guides import Guide

START_S = 120.0  # until the first answer: the process has to load
PATIENCE_S = 10.0
KNOWN = 1024


class GuideProcess:
    """Says whether the engine can compile a guide. One that takes too long, or kills the process, cannot be.

    For one thread.
    """

    def __init__(self, directory: Path) -> None:
        """Take the directory of the tiny model that `guide_checker` loads."""
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self._good: OrderedDict[Guide, None] = OrderedDict()

    def problem(self, guide: Guide) -> str | None:
        """Why the engine cannot follow `guide`; None when it can."""
        if guide in self._good:
            self._good.move_to_end(guide)
            return None
        patience = PATIENCE_S
        if self._process is None:
            patience += START_S
            self._process = subprocess.Popen(
                [python(), "-u", str(Path(__file__).with_name("guide_checker.py")), str(self._directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the server
            )
        problem = self._ask(self._process, guide, patience)
        if problem is None:
            self._good[guide] = None
            if len(self._good) > KNOWN:
                self._good.popitem(last=False)
        return problem

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, process: subprocess.Popen[str], guide: Guide, patience: float) -> str | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"kind": guide.kind, "text": guide.text}) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], patience)[0]:
                self.close()
                return f"it takes longer than {PATIENCE_S:.0f} s to compile"
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            self.close()
            return "the compiler crashed on it"
        problem: str | None = json.loads(answer)["error"]
        return problem
