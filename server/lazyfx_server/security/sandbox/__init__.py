"""What keeps a worker process from reaching anything but its job.

Three kinds of processes are confined: those that run passes, those that run Inductor and load
what was compiled, and those that run a compiler. Each enters its sandbox after it was forked:
it gains no rights, dumps nothing, has bounded memory, files and processes, reads Python's own
folders and nothing else (Landlock), and can open no socket and send no signal (seccomp). One for
passes starts no program, writes nothing and makes no memory executable; one for native jobs
starts no program and writes to the folder of its job; one for a compiler writes to a folder of
its own and runs the compiler's programs. What the kernel lacks is left out and said; what it has
and refuses is an error.
"""

from lazyfx_server.security.sandbox.enter import (
    LAYERS,
    Policy,
    SandboxError,
    available,
    enter,
    readable_paths,
)

__all__ = ["LAYERS", "Policy", "SandboxError", "available", "enter", "readable_paths"]
