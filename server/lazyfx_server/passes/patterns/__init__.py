"""Groups of nodes that passes look for."""
