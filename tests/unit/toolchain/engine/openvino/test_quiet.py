"""Nothing of OpenVINO's reports anything, whatever the environment says."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.fork"):
        print("attempted", event, args)

sys.addaudithook(refuse)
import toolchain.engine.openvino
print("heavy:", [name for name in ("openvino", "torch", "transformers") if name in sys.modules])
import openvino
import openvino_genai
import openvino_tokenizers
from openvino.tools.ovc import telemetry_utils
print("telemetry:", telemetry_utils.tm.__name__)
"""


def run(script, home):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "HOME", "XDG_CONFIG_HOME")
    }
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return result.stdout.splitlines()


def test_no_report_and_no_trace(tmp_path):
    lines = run(SCRIPT, tmp_path)
    assert lines == ["heavy: []", "telemetry: openvino.tools.ovc.telemetry_stub"]
    assert not list(tmp_path.iterdir())
