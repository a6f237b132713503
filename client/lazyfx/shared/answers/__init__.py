"""Bounds and checks of what a server sends, for clients and for servers that ask another one."""
