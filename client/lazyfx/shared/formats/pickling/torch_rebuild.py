"""All private names of torch that pickles use."""

from __future__ import annotations

from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch._utils import _rebuild_parameter as rebuild_parameter
from torch._utils import _rebuild_tensor_v3 as rebuild_tensor
from torch._utils import get_tensor_metadata
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.fx.graph_module import _method_from_src as function_of

__all__ = [
    "CodeGen",
    "_PyTreeCodeGen",
    "_PyTreeInfo",
    "bytes_of",
    "defining_module_of",
    "function_of",
    "metadata_of",
    "pytree_info_of",
    "rebuild_parameter",
    "rebuild_tensor",
]


def bytes_of(storage: torch.UntypedStorage) -> torch.storage.TypedStorage:
    """A storage as an untyped one, which torch can pickle whatever the dtype."""
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.uint8, _internal=True)


def defining_module_of(operator: str) -> str | None:
    """The module with the function of a `torch.library.custom_op`, by its name ("ns::name")."""
    found = OPDEFS.get(operator)
    return None if found is None else found._init_fn.__module__  # noqa: SLF001 - no public reader


def metadata_of(tensor: torch.Tensor) -> dict[str, Any]:
    """The conjugate and negative bits of a tensor."""
    return dict(get_tensor_metadata(tensor))


def pytree_info_of(codegen: CodeGen) -> _PyTreeInfo | None:
    """The pytree calling convention of a code generator; None for a plain one.

    Raises:
        TypeError: It is another code generator.
    """
    if type(codegen) is CodeGen:
        return None
    if type(codegen) is _PyTreeCodeGen:
        return codegen.pytree_info
    raise TypeError(f"a custom code generator ({type(codegen).__name__})")
