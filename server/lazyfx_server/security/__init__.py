"""Turning bytes from strangers into graphs that may be used."""
