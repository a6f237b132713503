"""Talking to a server: the channel, the calls, what is tried again."""
