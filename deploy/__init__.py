"""The Triton model repository, and what starts, watches and talks to the server."""
