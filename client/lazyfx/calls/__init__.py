"""Communication with a server: channels, calls and retries."""
