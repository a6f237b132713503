"""The server's settings, and how they are loaded."""
