"""Confinement of a worker process, applied once, before its first job."""

from __future__ import annotations

import tempfile

import torch

from lazyfx_server.security.sandbox import Policy, enter


def confine(policy: Policy) -> None:
    """Prepare what a confined process has no rights for, then enter the sandbox.

    Raises:
        SandboxError: A layer of the policy could not be entered; the worker must not start.
    """
    # oneDNN generates machine code at run time, but the sandbox forbids executable memory; torch's
    # own kernels compute the same.
    torch.backends.mkldnn.set_flags(False)
    # Looked for once in a process, by writing to it; torch asks for its name, and writes nothing.
    tempfile.gettempdir()
    enter(policy)
