"""Turns untrusted bytes into graphs that are safe to use."""
