"""Blobs that clients upload."""
