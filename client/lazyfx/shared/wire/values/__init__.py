"""What a node computes: tensors, symbolic sizes, literals, without computing it."""
