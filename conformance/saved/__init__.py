"""Saves graphs in every format, and calls what was saved in processes that have torch alone.

The graphs are captures of the zoo and of torch's own operators: `make saved-formats`.
"""
