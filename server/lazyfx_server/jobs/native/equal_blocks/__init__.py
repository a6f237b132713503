"""Compiles the equal layers of a graph once: finds them, and makes each a call of one graph."""
