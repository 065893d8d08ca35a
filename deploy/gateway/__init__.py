"""An OpenAI-compatible HTTP front door before a Triton server."""
