"""Modules of torch.nn that a graph calls, as class, options and tensors."""
