"""Groups of nodes that passes search for."""
