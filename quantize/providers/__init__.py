"""Quantizers of others, behind the same stage and the same output form as our own."""
