"""Message -> torch.fx graph."""
