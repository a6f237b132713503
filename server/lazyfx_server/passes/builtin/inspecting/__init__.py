"""Passes that only look."""
