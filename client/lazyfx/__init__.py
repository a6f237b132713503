"""Compile torch.fx graphs once, somewhere else, and only when somebody asks."""
