"""Analyses of a graph: which operator a node calls, its effects, aliases and value."""
