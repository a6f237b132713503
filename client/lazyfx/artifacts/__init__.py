"""Artifacts of a compiled module on the client: fetching, checking, rebuilding."""
