"""Passes that take away or rewrite single nodes."""
