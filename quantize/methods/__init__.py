"""Quantization methods: what each remembers of calibration, and how it quantizes a group of linears."""
