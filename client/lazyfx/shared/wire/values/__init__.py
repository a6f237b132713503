"""Descriptions of node values: tensors, symbolic sizes, literals."""
