"""Counts the graphs of torch.compile that a server compiles, and those that stay local, by reason."""
