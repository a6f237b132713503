"""What a graph may call, and its names on the wire."""
