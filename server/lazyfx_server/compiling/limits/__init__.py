"""Limits of one request, of one tenant, and of all requests together."""
