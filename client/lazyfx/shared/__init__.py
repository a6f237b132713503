"""Code shared by client and server. The server imports only this, `errors` and `v1` of `lazyfx`."""
