"""The functions that worker processes run: bytes in, bytes out."""
