"""Serves requests: compiling graphs, rendering artifacts, storing blobs."""
