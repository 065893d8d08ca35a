"""Keeps OpenVINO from reporting its use.

`import openvino` posts a usage event to Google Analytics and creates `~/intel`, unless the package
`openvino-telemetry`, on which it depends, cannot be imported: then a stub inside OpenVINO takes its place.
"""

from __future__ import annotations

import sys


def disable_telemetry() -> None:
    """Make `import openvino_telemetry` fail in this process. Must run before the first `import openvino`."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None is how Python spells "no such module"
