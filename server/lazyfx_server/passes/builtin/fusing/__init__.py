"""Passes that put one call in place of several."""
