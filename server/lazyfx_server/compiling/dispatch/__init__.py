"""Dispatches jobs to worker processes, and checks their results."""
