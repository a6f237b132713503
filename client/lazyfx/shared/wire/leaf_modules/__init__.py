"""torch.nn modules that a graph calls, as class, options and tensors."""
