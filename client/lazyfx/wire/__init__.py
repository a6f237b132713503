"""fx graphs on the wire: the only part of the client that imports torch."""
