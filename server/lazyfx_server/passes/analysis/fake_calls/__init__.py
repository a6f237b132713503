"""What calls on fake tensors return, computed once for equal calls."""
