"""Passes that only inspect the graph."""
