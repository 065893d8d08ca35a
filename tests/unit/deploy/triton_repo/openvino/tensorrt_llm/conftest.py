"""Inside Triton these modules are neighbours of model.py, with plain names; here they are made so too."""

import sys
from pathlib import Path

SOURCES = Path(__file__).parents[6] / "deploy/triton_repo/openvino/tensorrt_llm"
sys.path.insert(0, str(SOURCES))
