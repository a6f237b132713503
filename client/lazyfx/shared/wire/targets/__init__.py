"""What a graph may call, and what it is called on the wire."""
