"""From what a caller has to a request, without I/O."""
