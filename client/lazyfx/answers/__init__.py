"""Checks answers of a server against the request and against bounds."""
