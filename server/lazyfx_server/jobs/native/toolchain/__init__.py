"""Compiles C++ with the server's own command line, in processes that never hold graphs.

A native worker runs Inductor but executes no programs. Each compiler command of Inductor becomes a
request in a closed vocabulary (`commands`), which the server passes to a compile worker
(`build_job`); the answer holds the bytes of an object or library. `flags` defines the vocabulary,
`compiler` finds the compiler, `build_keys` and `toolchain_digest` derive cache keys,
`subprocess_hooks` replaces the places where Inductor starts programs, and `kernel_requests` asks
for kernels before Inductor does.
"""
