"""What client and server share; of `lazyfx` the server imports this, `errors` and `v1`, no more."""
