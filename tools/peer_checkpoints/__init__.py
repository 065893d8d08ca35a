"""What each quantizer writes, and what it reads: one module a tool, each run in the tool's environment."""
