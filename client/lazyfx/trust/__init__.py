"""Whom a client believes, and what it shows of itself."""
