"""Asking another server first: what this one sends it, and what it takes from its answers."""
