"""Counts the graphs of torch.compile that a server compiles, and the others by reason."""
