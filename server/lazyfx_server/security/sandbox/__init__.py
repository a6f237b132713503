"""What keeps a worker process from reaching anything but its job.

A worker enters its sandbox after it was forked and before the first byte of a job: it gains no
rights, dumps nothing, has bounded memory, files and processes, reads Python's own folders and
nothing else (Landlock), and can start no program, open no socket and make no memory executable
(seccomp). What the kernel lacks is left out and said; what it has and refuses is an error.
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
