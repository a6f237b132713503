"""What a compiled module becomes on the client: fetched, checked, built."""
