"""Stages, the content-addressed store that keeps their outputs, and the artifacts made of them."""
