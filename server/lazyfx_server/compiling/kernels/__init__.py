"""Compiled C++ kernels: each is compiled once, for all jobs and servers that share a store.

`kernel_store` keeps them, `kernel_flights` makes those that are missing once, and `build_slots`
shares the compilers of this machine between jobs.
"""
