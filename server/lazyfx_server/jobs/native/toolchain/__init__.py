"""C++ compiled by the server's own command line, in processes apart from those that hold graphs.

A native worker runs Inductor and executes no program. What Inductor would have a compiler do
becomes a request of closed words (`commands`), which the server has a compile worker do
(`build_job`); back come the bytes of an object or library. `flags` has the words, `compiler` finds
the compiler, `build_keys` names what was made of what, and `subprocess_hooks` put all that where
Inductor starts programs.
"""
