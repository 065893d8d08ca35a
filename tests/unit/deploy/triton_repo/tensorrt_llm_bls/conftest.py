"""Inside Triton these modules are neighbours of model.py, with plain names; here they are made so too."""

import sys
from pathlib import Path

SOURCES = Path(__file__).parents[5] / "deploy/triton_repo/tensorrt_llm_bls"
sys.path.insert(0, str(SOURCES))
