"""The error for a callable that a graph may not call, and its remedy."""

# ruff: noqa: SLF001 - the class of higher-order operators has no public name

from __future__ import annotations

import torch

from lazyfx.errors import UnsupportedGraphError

_REGISTER = (
    "a custom operator (torch.library.custom_op), whose module the server imports "
    "(lazyfx serve --operator-modules)"
)
_JAGGED = (
    "compute on values and offsets, or on a padded tensor and a mask, and build the jagged tensor "
    "outside the compiled code"
)
# Triton kernels are Python objects in a table of the caller's process.
_REMEDIES = {
    "triton_kernel_wrapper_functional": f"launch the Triton kernel within {_REGISTER}",
    "triton_kernel_wrapper_mutation": f"launch the Triton kernel within {_REGISTER}",
    "_LeafCallable": f"turn the function marked nonstrict_trace or leaf_function into {_REGISTER}",
}


def unknown_target_error(target: object) -> UnsupportedGraphError:
    """The error for a callable outside the allow-table."""
    spelled = getattr(target, "__qualname__", None) or type(target).__qualname__
    module = getattr(target, "__module__", None)
    label = f"{module}.{spelled}" if module else spelled
    if isinstance(target, torch._ops.HigherOrderOperator):
        label = spelled = target.name()
    usual = (
        f"use torch operators, torch.nn.functional, operator or math functions, or {_REGISTER}; "
        "a function of a module can be allowed by name (lazyfx.allow_targets)"
    )
    if label.startswith("torch.nested."):
        usual = _JAGGED
    remedy = _REMEDIES.get(spelled, usual)
    return UnsupportedGraphError(
        f"the callable {label} is not in the table of allowed targets", remedy=remedy
    )
