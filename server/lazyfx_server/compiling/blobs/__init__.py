"""Bytes that clients upload."""
