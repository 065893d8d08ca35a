"""Facts of a model: its spec from config.json, and lazy access to its tensors."""
