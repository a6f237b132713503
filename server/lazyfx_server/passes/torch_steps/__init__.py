"""Torch's own graph passes; their private names are in these files alone."""
