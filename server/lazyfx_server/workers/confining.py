"""A worker process that is confined: what it does once, before its first job."""

from __future__ import annotations

import torch

from lazyfx_server.security.sandbox import Policy, enter


def confine(policy: Policy) -> None:
    """Make ready what needs rights that a confined process lacks, then enter the sandbox.

    Raises:
        SandboxError: A layer of the policy could not be entered; the worker must not start.
    """
    # oneDNN writes machine code at run time, which memory that is never executable forbids;
    # torch's own kernels compute the same.
    torch.backends.mkldnn.set_flags(False)
    enter(policy)
