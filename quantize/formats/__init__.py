"""File forms of quantized checkpoints: packing of codes, tensor files, ModelOpt's unified form."""
