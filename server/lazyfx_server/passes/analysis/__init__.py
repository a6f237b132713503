"""What passes know of a graph: what a node calls, does, shares and computes."""
