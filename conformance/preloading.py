"""Imports what captures need, in the process that those of `conformance.processes` are forks of."""

from __future__ import annotations

import contextlib
import importlib

import torch

# Threads that an import starts would be missing in the forks.
torch.set_num_threads(1)
_IMPORTED = (
    # Torch's databases, which need expecttest.
    "torch.testing._internal.common_methods_invocations",
    "torch.testing._internal.common_modules",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch.export",
    "torch.package",
    "transformers",
    "zoo",
)
for name in _IMPORTED:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
