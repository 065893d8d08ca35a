"""Recipes in, artifacts out: everything between a model's weights and a running server."""
