"""From the caller's argument to a request, without I/O."""
