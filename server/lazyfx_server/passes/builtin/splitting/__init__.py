"""Passes that split a graph into parts."""
