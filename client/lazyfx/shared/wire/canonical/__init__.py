"""Checks that a graph body is in canonical form."""
