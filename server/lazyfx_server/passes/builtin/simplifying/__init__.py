"""Passes that remove or rewrite single nodes."""
