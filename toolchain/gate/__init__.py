"""Quality gates: how far a quantized checkpoint is from its source, and whether that is near enough."""
