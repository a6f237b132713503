"""Compiling to native code, in processes that end afterwards."""
