"""What an operator can set, where it is read from, and whether this machine can run with it."""
