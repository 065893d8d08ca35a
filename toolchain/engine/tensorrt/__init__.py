"""The tensorrt flavour: from a quantized checkpoint to rank files, engines and a Triton repository."""
