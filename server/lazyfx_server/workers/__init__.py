"""The worker processes of a server: which kinds there are, and how each is confined."""
