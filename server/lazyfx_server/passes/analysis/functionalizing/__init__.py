"""Rewriting a graph without side effects, by tracing it again."""
