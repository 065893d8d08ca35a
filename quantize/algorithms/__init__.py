"""Quantization mathematics on tensors alone: each module reads beside its paper."""
