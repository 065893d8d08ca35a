"""What starts a server: scripts and manifests, rendered from an artifact's facts. Nothing is started here."""
