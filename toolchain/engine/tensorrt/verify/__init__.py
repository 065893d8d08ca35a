"""`llmbuild verify`: the ranks of a TensorRT-LLM checkpoint, run as processes and held against the source."""
