"""The sandbox that keeps a worker process from accessing anything but its job.

Three kinds of processes are confined: those that run passes, those that run Inductor and load the
compiled code, and those that run a compiler. Each enters its sandbox after the fork. It cannot gain
privileges or dump core; its memory, files and processes are bounded; it can read Python's own
folders only (Landlock), and can open no sockets and send no signals (seccomp). A process for passes
starts no programs, writes nothing and makes no memory executable. A process for native jobs starts
no programs and writes only to the folder of its job. A process for a compiler writes only to its
own folder and runs the compiler's programs. Layers that the kernel lacks are skipped and reported;
a layer that it has but refuses is an error.
"""

from lazyfx_server.security.sandbox.enter import (
    LAYERS,
    SYSTEM_PATHS,
    Policy,
    SandboxError,
    available,
    enter,
    readable_paths,
)

__all__ = [
    "LAYERS",
    "SYSTEM_PATHS",
    "Policy",
    "SandboxError",
    "available",
    "enter",
    "readable_paths",
]
