"""Triton model repositories, one module an engine flavour; what they share is in `common`."""
