"""torch.fx graph -> message."""
