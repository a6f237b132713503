"""File formats of a graph that load with torch alone."""
