"""Passes that cut a graph into parts."""
