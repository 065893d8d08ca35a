"""The openvino flavour: from a (quantized) Hugging Face checkpoint to what OpenVINO GenAI runs on a CPU.

Importing this package turns OpenVINO's telemetry off for the process, and imports none of the heavy packages.
"""

from toolchain.engine.openvino.quiet import disable_telemetry

disable_telemetry()

from toolchain.engine.openvino.export import build_ir  # noqa: E402
from toolchain.engine.openvino.properties import plugin_properties  # noqa: E402

__all__ = ["build_ir", "disable_telemetry", "plugin_properties"]
