"""Quantization: mathematics, the layer-streaming driver, calibration data, checkpoint formats."""
