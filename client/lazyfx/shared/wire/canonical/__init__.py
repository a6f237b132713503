"""The one form in which a graph body is written, checked."""
